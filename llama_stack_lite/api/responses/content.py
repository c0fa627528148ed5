"""What messages and outputs of tools are made of."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llama_stack_lite.api.inference import (
    ImagePart,
    ImageURL,
    Nullable,
    OtherPart,
    Part,
    RefusalPart,
    TextPart,
)


class InputText(Nullable):
    type: Literal["input_text"]
    text: str

    def part(self) -> Part:
        return TextPart(type="text", text=self.text)


class InputImage(Nullable):
    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] = "auto"

    @model_validator(mode="after")
    def _here(self) -> Self:
        if not (self.image_url or self.file_id):
            raise ValueError(
                "`image_url` is missing: a web address, or the image itself as a `data:` URL; or `file_id`"
            )
        return self

    def indirect(self) -> bool:
        """Whether it has to be read before a model can see it."""
        return not self.image_url

    def part(self) -> Part:
        detail = "auto" if self.detail == "original" else self.detail
        return ImagePart(type="image_url", image_url=ImageURL(url=self.image_url or "", detail=detail))


class InputFile(Nullable):
    type: Literal["input_file"]
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None

    @model_validator(mode="after")
    def _here(self) -> Self:
        if not (self.file_data or self.file_id):
            raise ValueError("`file_data` is missing: the file itself as a `data:` URL; or `file_id`")
        return self

    def indirect(self) -> bool:
        return True

    def part(self) -> Part:
        file = {"file_data": self.file_data, "filename": self.filename}
        return OtherPart.model_validate({"type": "file", "file": file})


class OutputText(Nullable):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[dict[str, Any]] = Field(default_factory=list)
    logprobs: list[dict[str, Any]] = Field(default_factory=list)

    def part(self) -> Part:
        return TextPart(type="text", text=self.text)


class OutputRefusal(Nullable):
    type: Literal["refusal"] = "refusal"
    refusal: str

    def part(self) -> Part:
        return RefusalPart(type="refusal", refusal=self.refusal)


InputContent = Annotated[InputText | InputImage | InputFile, Field(discriminator="type")]
Content = Annotated[
    InputText | InputImage | InputFile | OutputText | OutputRefusal, Field(discriminator="type")
]
