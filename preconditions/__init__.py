"""What must hold on the Docker host before an update, checked by the program and by `make up`."""
