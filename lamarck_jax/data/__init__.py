"""Image data sets as arrays.

`datasets` is all that a search needs: `datasets.load` returns the training,
validation and test split of a named data set. Read the rest to add a source of
images or an archive format:

  datasets          the public module: `load`, `Dataset`, `Split`
  on_device         the data set on the device, and the batches taken from it
  source            what a reader returns
  splits            training, validation and test split, the same for every seed
  digits            scikit-learn's digits
  own_images        the user's images, from an npz file or a folder
  arrays            the same as a program has them, for `lamarck_jax.fit`
  image_folder      a folder of images with a folder per class
  npz               arrays of an npz file, within bounds
  tfds_reading      prepared TFDS data sets, read without TensorFlow
  tfds_preparation  downloads and prepares the data sets of the paper
  archives          the archive formats of MNIST and CIFAR
  decoding          decodes and resizes images with Pillow, for prediction too
  files             which files are listed, and how they are opened
  fingerprint       what tells whether two data sets are the same
  array_cache       keeps the decoded arrays of a prepared data set
"""
