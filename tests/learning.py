"The methods that have something to train: all but k-means on frozen features."

from deepclust_nb.train import METHODS

LEARNING = [name for name, card in METHODS.items() if card.learns]
