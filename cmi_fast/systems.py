"""What the systems of a metrics table are called, in the order in which it lists them."""

NAMES = {
    "cmi": "CMI",
    "cmi-authors": "CMI, authors' code",
    "comirec-dr": "ComiRec-DR",
    "comirec-sa": "ComiRec-SA",
    "dssrec": "DSSRec",
    "mind": "MIND",
    "octopus": "Octopus",
    "item_knn": "ItemKNN",
    "item_knn_recent": "ItemKNN + recent popularity",
    "recent_popularity": "Recent popularity",
    "popularity": "Popularity",
}
