"""What lmms-eval finds through the entry-point group lmms_eval.models."""
from lmms_eval.models.registry_v2 import ModelManifest

MANIFESTS = [ModelManifest("vidkv_hf", simple_class_path="vidkv.benchmark.hf.VidkvHf"),
             ModelManifest("vidkv_gguf", simple_class_path="vidkv.benchmark.gguf.VidkvGguf")]
