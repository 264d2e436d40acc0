"""Before the decision: whether a log's tables should be served from NVM, in numbers.

Imports whatever predicts; nothing but command lines imports it.
"""

from bandana_kv.assess.advice import Sizes
from bandana_kv.assess.cost import Prices
from bandana_kv.assess.data import Assessment
from bandana_kv.assess.devices import DEVICE_CLASSES, PUBLISHED, DeviceClass, device_class
from bandana_kv.assess.endurance import Drive, Retraining
from bandana_kv.assess.fleet_data import Advice
from bandana_kv.assess.question import TRAIN, Question, Table
from bandana_kv.assess.run import assess
from bandana_kv.assess.table import Block

__all__ = [
    "DEVICE_CLASSES",
    "PUBLISHED",
    "TRAIN",
    "Advice",
    "Assessment",
    "Block",
    "DeviceClass",
    "Drive",
    "Prices",
    "Question",
    "Retraining",
    "Sizes",
    "Table",
    "assess",
    "device_class",
]
