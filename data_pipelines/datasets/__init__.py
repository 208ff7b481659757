"""TFDS builders. Importing one imports TensorFlow; `data_pipelines.prepare` does so only once clips are converted."""
