"""What is optimised: a model and a batch in, named parts of the loss out."""
