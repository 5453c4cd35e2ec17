"""The demo's model: a small CNN that reads scikit-learn's handwritten digits, in three versions, and the images to try it on."""
