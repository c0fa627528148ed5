"""A tiny random Llama 3.2 Vision, in Hugging Face's layout: four layers, two of which look at images."""

from pathlib import Path

from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaProcessor
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from .tiny_hf import llama_tokenizer, save

SIDE, TILES = 56, 4

# as Llama 3.2 Vision's own: content may be text or parts, and an image is one token
TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if message.content is string %}
{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<|image|>' }}{%- else %}{{- part.text }}{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""


def write_mllama(path: Path, *, seed: int = 0) -> Path:
    """Write the model, its tokenizer and its processor, as `save_pretrained` writes them."""
    tokenizer = llama_tokenizer(template=TEMPLATE, specials=["<|image|>"])
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    text = MllamaTextConfig(
        vocab_size=image,  # an image is no token that the model can write
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        cross_attention_layers=[1, 3],
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    vision = MllamaVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=SIDE,
        patch_size=14,
        max_num_tiles=TILES,
        intermediate_layers_indices=[0, 1],
        vision_output_dim=96,  # the last layer and the two between, side by side
        supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    )
    config = MllamaConfig(text_config=text, vision_config=vision, image_token_index=image)
    save(MllamaForConditionalGeneration(config), path, seed=seed)
    images = MllamaImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_image_tiles=TILES)
    processor = MllamaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=TEMPLATE)
    processor.save_pretrained(path)
    return path
