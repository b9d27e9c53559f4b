"""How a network learns: data, augmentation, losses, averages, methods and the one loop that runs them all.

Nothing is imported here, so that the data tools start without loading every method; the table of methods is
`training.methods.table.METHODS`.
"""
