"""What is trained: data sets held as tensors on the device, and the models.

`load_data(task, device)` gives a `Data`; `build_model(spec...)` a module with seeded initial weights.
"""

from hdlib.tasks.data import TASKS, Data, DataNotFoundError, data_folder, load_data
from hdlib.tasks.models import MODELS, build_model

__all__ = ["MODELS", "TASKS", "Data", "DataNotFoundError", "build_model", "data_folder", "load_data"]
