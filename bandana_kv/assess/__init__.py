"""Before the decision: whether a log's tables should be served from NVM, in numbers.

Imports whatever predicts; nothing but command lines imports it.
"""

from bandana_kv.assess.cost import Prices
from bandana_kv.assess.data import Assessment
from bandana_kv.assess.devices import DEVICE_CLASSES, PUBLISHED, DeviceClass, device_class
from bandana_kv.assess.endurance import Drive, Retraining
from bandana_kv.assess.run import Question, Table, assess

__all__ = [
    "DEVICE_CLASSES",
    "PUBLISHED",
    "Assessment",
    "DeviceClass",
    "Drive",
    "Prices",
    "Question",
    "Retraining",
    "Table",
    "assess",
    "device_class",
]
