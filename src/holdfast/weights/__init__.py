"""Methods that move the parameters: quantisation, weight noise."""
