"""`make bench`: this stack beside a plain set-up of the same images, in pairs."""
