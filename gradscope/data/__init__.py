"""Images with class labels: COCO folders, the drawn demo set, class folders, the user's own."""

from gradscope.data.config import DataConfig
from gradscope.data.dataset import ImageDataset, Splits

__all__ = ["DataConfig", "ImageDataset", "Splits"]
