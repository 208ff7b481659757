"""TFDS builders. Importing one imports TensorFlow; the prepare job does so once clips are converted."""
