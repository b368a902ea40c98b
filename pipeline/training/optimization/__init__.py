"""How a network is stepped.

losses             what training makes small
schedules          the learning rate over a run
parameter_groups   AdamW's groups, and the precision of the forward pass
ema                the moving average of the weights, which is what is saved
"""
