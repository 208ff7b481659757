"""TFDS builders. Importing one imports TensorFlow; `data_pipelines.prepare` does so once clips are converted."""
