"""`make upgrade`: newer versions of MLflow and of the images, and the pins that name them."""
