"""Memory of one update of a learner: what torch keeps of a forward pass, and the most that a backward pass adds to it.

Of each layer torch keeps, a token, for hidden size h, widths q of queries and k of keys, width i of a gated MLP, rank r of
adapters beside its n linear layers, and a heads:

    computation     weights, trained             numbers kept                        bytes each
    float32         float32                      8h' + 2k + 4i + a + 2               4
    half precision  float32                      4h + (a + 2), 5h + 2q + 2k + 4i     4, 2
    half precision  half precision               2h + (a + 2), 4h + 2q + 2k + 4i     4, 2
    float32         frozen, adapters beside      4h + 2q + 2k + 4i + nr + a + 2      4
    half precision  float32, frozen, adapters    2h + (a + 2), 5h + 2q + 2k + 4i + nr  4, 2

8h' is 6h + 2q: the residual stream and its normalized copy before attention and MLP (4h), what the two norms return (2h), queries
and what attention returns (2q). Autocast gives every linear layer a copy of its inputs in half precision: three for queries, keys
and values, two for the MLP. A frozen norm does not keep its normalized input. The MLP keeps 4i: gate, its activation, up, product.
Autocast also keeps a cast of every weight, 2 bytes each.

The peak is the largest of four moments of a pass:

    the end of the forward pass        kept + casts + logits of one part
    the backward pass of the output    kept + casts + logits, their gradient, and the gradient of the output layer's weight
    that of the last layer             kept + casts + 2i numbers a token + the gradient of tied weights, which waits
    that of the embedding              its gradient, a second time where the output layer is tied to it

With recomputed activations `kept` is h numbers a layer, and the layer under way comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from tppo_rl.config.options import Options
from tppo_rl.config.sections.models import LoraOptions
from tppo_rl.plan.model_shape import Shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_LARGEST_LOGITS = 2**25
"""Logits that a learner holds at once (`tppo_rl.learner.models`)."""
_BLOCK = 2**20
"""Logits that a learner's CPU computes at once in float32, in three copies (`tppo_rl.maths.log_probs`)."""


@dataclass(frozen=True)
class Pass:
    """Bytes of a forward and backward pass over one micro-batch."""

    kept: int
    """What torch keeps between the two, casts of weights included."""
    peak: int
    """The most at any time, `kept` or some of it included."""


def learner_pass(shape: Shape, options: Options, *, has_logits: bool) -> Pass:
    """Returns what a pass of the policy (with logits) or of the critic (without) takes.

    Args:
        shape: Of the model.
        options: Of the run.
        has_logits: Whether its output layer is computed.
    """
    tokens, half = options.compute.micro_batch_tokens, options.models.dtype != "float32"
    number = BYTES[options.models.dtype]
    weight = BYTES[options.models.weights_dtype]
    lora = options.models.lora if has_logits else options.models.critic_adapters
    trained = lora is None
    recomputed = options.learners.gradient_checkpointing
    of_layer = tokens * kept_of_layer(shape, options, lora)
    casts = number * sum(inputs * outputs for _, inputs, outputs in shape.linear) if half and weight == 4 else 0
    of_block = casts // shape.layers
    if options.learners.distributed == "fsdp":
        # Sharded blocks are gathered in half precision, one after the other.
        casts = of_block
    # The residual stream behind the last layer, and its normalized copy.
    ends = 2 * weight * shape.hidden * tokens
    # Casts of trained weights last until the end of the forward pass, whatever is kept for the backward pass.
    forward_casts = casts if trained or not recomputed else of_block
    if recomputed:
        kept, under_way = tokens * weight * shape.hidden * shape.layers + ends, of_layer + of_block
    else:
        kept, under_way = of_layer * shape.layers + ends + casts, 0
        forward_casts = 0
    moments = []
    waiting = 0
    if has_logits:
        head = _output_layer(shape, options, tokens)
        moments += [kept + forward_casts + head.forward, kept + head.backward]
        waiting = head.waiting
    else:
        moments.append(kept + forward_casts)
    # Gradients of the product, of the activation and of up replace the product; and those of residual stream and hidden states.
    under_way += tokens * (2 * shape.mlp * number + 2 * shape.hidden * 4)
    under_way += shape.hidden * shape.mlp * number if trained else 0
    moments.append(kept + waiting + under_way)
    if trained:
        moments.append(waiting + weight * shape.embedding)
    return Pass(kept, max(moments))


def kept_of_layer(shape: Shape, options: Options, lora: LoraOptions | None) -> int:
    """Returns the bytes that torch keeps of one layer for each token, with these adapters beside it."""
    h, q, k, i = shape.hidden, shape.queries, shape.keys, shape.mlp
    half, half_weights = options.models.dtype != "float32", options.models.weights_dtype != "float32"
    single = 4 * (shape.heads + 2)
    wide = 2 * q + 2 * k + 4 * i
    if lora is not None:
        wide += lora.rank * len(shape.linear) // shape.layers
    if not half:
        return single + 4 * ((4 if lora is None else 2) * h + 2 * h + wide)
    if half_weights:
        return single + 4 * 2 * h + 2 * ((4 if lora is None else 2) * h + wide)
    return single + 4 * (4 if lora is None else 2) * h + 2 * (5 * h + wide)


@dataclass(frozen=True)
class _OutputLayer:
    """Bytes of the output layer, beside what the backbone keeps."""

    forward: int
    backward: int
    waiting: int
    """Gradient of tied weights, which the embedding's is added to at the end."""


def _output_layer(shape: Shape, options: Options, tokens: int) -> _OutputLayer:
    models, trained = options.models, options.models.lora is None
    number = 4 if models.head_dtype == "float32" else BYTES[models.dtype]
    weights = shape.vocabulary * shape.hidden
    of_weights = BYTES[models.weights_dtype] * weights if trained else 0
    part = min(tokens, max(1, _LARGEST_LOGITS // shape.vocabulary))
    logits = part * shape.vocabulary * number
    several = part < tokens
    # Hidden states at the sampled tokens, and a rounded copy of the weights.
    carried = 4 * shape.hidden * tokens
    if BYTES[models.dtype] < BYTES[models.weights_dtype]:
        carried += number * weights
    blocks = 3 * 4 * min(_BLOCK, part * shape.vocabulary)
    # Gradients of the parts before are added up meanwhile; one of half precision is cast.
    sums = of_weights if several else 0
    fresh = of_weights + (number * weights if trained and number < BYTES[models.weights_dtype] else 0)
    return _OutputLayer(
        forward=carried + logits + blocks,
        backward=carried + sums + logits + max(logits + blocks, fresh),
        waiting=of_weights if shape.output == 0 else 0,
    )
