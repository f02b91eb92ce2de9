"""What is trained: data sets held as tensors on the device, and the models.

`load_data(task, device)` gives a `Data`; `build_model(model, features, classes, seed)` a module with seeded
initial weights.
"""

from hdlib.tasks.data import Data, DataNotFoundError, load_data
from hdlib.tasks.models import build_model

__all__ = ["Data", "DataNotFoundError", "build_model", "load_data"]
