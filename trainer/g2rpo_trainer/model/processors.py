"""The processor or tokenizer of a model, and its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2rpo_trainer.config import Model
from g2rpo_trainer.errors import RunError

from .chat_template import template_of

_PARTS = ("image_processor", "tokenizer")


def load_processor(source: str, model: Any, options: Model, gguf_file: str | None) -> Any:
    """Return the processor of a model that takes images, else its tokenizer.

    Parameters
    ----------
    source : str
        Folder or hub id.
    model : transformers.PreTrainedModel
        Model that takes the inputs.
    options : Model
        Section ``model`` of the configuration.
    gguf_file : str or None
        GGUF file, if it holds the tokenizer too.

    Returns
    -------
    transformers.ProcessorMixin or PreTrainedTokenizerBase

    Raises
    ------
    RunError
        If there is no chat template, and none is named.
    """
    from transformers import AutoTokenizer

    where: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if _takes_images(model):
        processor = _image_processor(source, model, where)
    else:
        if gguf_file is not None:
            where["gguf_file"] = gguf_file
        processor = AutoTokenizer.from_pretrained(source, **where)
    if options.chat_template is not None:
        processor.chat_template = _read_template(Path(options.chat_template))
    _check_template(processor, source)
    return processor


def _takes_images(model: Any) -> bool:
    from transformers.models.auto import modeling_auto

    names = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    own = getattr(model.config, "auto_map", None) or {}
    return type(model).__name__ in names or "AutoModelForImageTextToText" in own


def _image_processor(source: str, model: Any, where: dict[str, Any]) -> Any:
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils.import_utils import is_torchvision_available

    if not is_torchvision_available() and type(model.config) in PROCESSOR_MAPPING:
        kind: Any = PROCESSOR_MAPPING[type(model.config)]
        if kind.get_attributes() == [*_PARTS, "video_processor"]:
            processor = without_videos(kind).from_pretrained(source, **where)
            processor.video_settings = _video_settings(source)
            return processor
    return AutoProcessor.from_pretrained(source, **where)


def without_videos(kind: Any) -> Any:
    """Return a subclass of a processor that takes no videos.

    Transformers reads videos by torchvision. Without it, processors that take images and videos
    cannot be made at all, although images do not need it. The settings for videos are kept in
    ``video_settings`` and saved, so that the folder loads where torchvision is installed.

    Parameters
    ----------
    kind : type
        Processor class of an image processor, a tokenizer and a video processor.
    """

    class WithoutVideos(kind):
        video_settings: Mapping[str, Any] = {}

        def to_dict(self) -> dict[str, Any]:
            own: dict[str, Any] = super().to_dict()
            videos = dict(self.video_settings)
            own.pop("video_settings", None)
            return {**own, "video_processor": videos} if videos else own

        @classmethod
        def get_attributes(cls) -> list[str]:
            return list(_PARTS)

        @classmethod
        def _get_arguments_from_pretrained(cls, *source: Any, **options: Any) -> list[Any]:
            # The third part, of videos, is None; it is no attribute, so it is never read.
            return [*super()._get_arguments_from_pretrained(*source, **options), None]

    WithoutVideos.__name__ = kind.__name__  # the name is saved in the processor's file
    return WithoutVideos


def _video_settings(source: str) -> dict[str, Any]:
    from transformers.video_processing_utils import BaseVideoProcessor

    try:
        settings: dict[str, Any] = BaseVideoProcessor.get_video_processor_dict(source)[0]
    except OSError:  # a folder without such settings
        return {}
    return settings


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"model.chat_template is {str(path)!r}, which cannot be read ({error.strerror}); it "
            "must be a Jinja file"
        ) from error


def _check_template(processor: Any, source: str) -> None:
    if template_of(processor) is None:
        raise RunError(
            f"the model {source!r} has no chat template (or several without a default), so nothing "
            "says how it was taught to be asked; name its instruction-tuned version by --model, or "
            "a Jinja file by model.chat_template"
        )
