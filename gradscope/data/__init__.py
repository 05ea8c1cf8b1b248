"""Images with class labels: COCO folders, the drawn demo set, class folders, the user's own."""

from gradscope.data.cache import default_cache_dir
from gradscope.data.config import DataConfig
from gradscope.data.dataset import ImageDataset, Splits
from gradscope.data.loading import load

__all__ = ["DataConfig", "ImageDataset", "Splits", "default_cache_dir", "load"]
