"""Why a request is refused, in words: one line for the caller, with what was expected and what came.

Only refusals come here. Texts from the wire are cut short and cleaned before they are repeated.
"""

from penstock.kernels._datatypes cimport contents_field
from penstock.kernels._protobuf cimport Slice
from penstock.kernels._wire cimport (
    BAD_BYTES_LENGTH, BATCH_MISMATCH, CLASSIFICATION, CONTENTS_AND_RAW, DUPLICATE_INPUT, MALFORMED, MISSING_FEATURES,
    MISSING_INPUT, NO_ROWS, OUT_OF_MEMORY, SHARED_MEMORY, TOO_MANY_PARTS, TOO_MANY_TEXTS, UNKNOWN_INPUT, UNKNOWN_OUTPUT,
    VALUE_OUT_OF_RANGE, WRONG_CONTENTS_COUNT, WRONG_CONTENTS_FIELD, WRONG_DATATYPE, WRONG_RAW_COUNT, WRONG_RAW_SIZE,
    WRONG_SHAPE, Fault, InputRef, Request,
)
from penstock.kernels.wire_plan cimport KIND_COLUMN, KIND_ENTITY, Plan, Slot

from penstock.kernels.wire_plan import DATATYPES

STRICTER = (
    "more than 8 dimensions, 1,024 inputs, raw contents or requested outputs, or 64 parameters in one place",
    "groups (wire types 3 and 4), which proto3 does not have",
    "an input with two `contents` fields, which protobuf would merge",
)
"""What protobuf would accept and this codec refuses."""

FAULTS = ("OK", "MALFORMED", "TOO_MANY_PARTS", "OUT_OF_MEMORY", "UNKNOWN_INPUT", "DUPLICATE_INPUT", "MISSING_INPUT",
          "WRONG_DATATYPE", "WRONG_SHAPE", "WRONG_RAW_COUNT", "WRONG_RAW_SIZE", "CONTENTS_AND_RAW",
          "WRONG_CONTENTS_FIELD", "WRONG_CONTENTS_COUNT", "VALUE_OUT_OF_RANGE", "BAD_BYTES_LENGTH", "BATCH_MISMATCH",
          "NO_ROWS", "UNKNOWN_OUTPUT", "SHARED_MEMORY", "CLASSIFICATION", "MISSING_FEATURES", "TOO_MANY_TEXTS")
"""Why a request is refused; a fault's place is its FaultCode."""


class WireError(ValueError):
    """A body is not a well-formed or not a fitting request; the text says what was expected and what came.

    Attributes:
        fault: which of FAULTS it is.
    """

    def __init__(self, message, fault="MALFORMED"):
        super().__init__(message)
        self.fault = fault


cdef str text_of(const Slice* slice):
    """Text from the wire, cut short and without control characters, for an error message."""
    cdef size_t size = slice.size if slice.size < 100 else 100
    text = (<const char*>slice.data)[:size].decode("utf-8", "replace") if size else ""
    return "".join(c if c.isprintable() else "?" for c in text) + ("..." if slice.size > size else "")


cdef str list_names(names):
    shown = ", ".join(repr(name) for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


cdef str expected_shape(Plan plan, const Slot* slot):
    if slot.kind == KIND_COLUMN or slot.kind == KIND_ENTITY:
        return "[n] or [n,1]"
    dims = ["-1"] if plan.batched else []
    return "[" + ",".join(dims + [str(slot.dims[i]) for i in range(slot.n_dims)]) + "]"


cdef str expected_type(const Slot* slot):
    if slot.kind == KIND_COLUMN:
        return "any number type"
    return "'BYTES' or 'INT64'" if slot.kind == KIND_ENTITY else f"'{DATATYPES[<int>slot.code]}'"


cdef str explain(Plan plan, const Request* request, const Fault* fault):
    """One line for the caller: which part was wrong, what was expected, what came."""
    cdef const InputRef* ref = NULL
    cdef const Slot* slot = NULL
    if fault.code == MALFORMED:
        return "the request is not a well-formed ModelInferRequest"
    if fault.code == TOO_MANY_PARTS:
        return f"the request has more parts than are served: {STRICTER[0]}; or an input with two contents"
    if fault.code == OUT_OF_MEMORY:
        return "no memory for the request"
    model = f"for model '{text_of(&request.model_name)}'"
    if fault.code == UNKNOWN_OUTPUT:
        name = text_of(&request.outputs[fault.part])
        return f"unexpected inference output '{name}' {model}; it has {list_names([o.name for o in plan.outputs])}"
    if fault.code == MISSING_INPUT:
        name = (<bytes>(<const char*>plan.slots[fault.part].name.data)[:plan.slots[fault.part].name.size]).decode()
        return f"input '{name}' is missing {model}; it takes {list_names([i.name for i in plan.inputs])}"
    if fault.code == MISSING_FEATURES:
        wanted = " or ".join(f"'{i.name}'" for i in plan.inputs)
        wanted += f" or all {fault.expected} columns by name"
        return f"features are missing {model}: send {wanted}, got {fault.got} columns"
    if fault.code == WRONG_RAW_COUNT:
        return (f"the number of inputs ({fault.expected}) does not match the number of raw input contents "
                f"({fault.got}) {model}")
    if fault.code == NO_ROWS:
        return f"the request has no rows {model}; send at least one"
    if fault.code == CLASSIFICATION:
        return "the classification extension is not served; ask for the output itself"
    if fault.code == SHARED_MEMORY:
        return "shared memory is not served; send the tensor in the request"
    ref = &request.inputs[fault.part]
    name = f"input '{text_of(&ref.name)}'"
    if fault.code == UNKNOWN_INPUT:
        columns = f" and the columns {list_names(plan.columns)}" if plan.n_columns else ""
        return f"unexpected inference {name} {model}; it takes {list_names([i.name for i in plan.inputs])}{columns}"
    if fault.code == DUPLICATE_INPUT:
        return f"{name} was sent twice {model}"
    slot = &plan.slots[ref.slot]
    if fault.code == WRONG_DATATYPE:
        got = text_of(&ref.datatype)
        return f"inference {name} data-type is '{got}', but {model[4:]} expects {expected_type(slot)}"
    shape = "[" + ",".join(str(ref.dims[i]) for i in range(ref.n_dims)) + "]"
    if fault.code == WRONG_SHAPE:
        return f"unexpected shape for {name} {model}. Expected {expected_shape(plan, slot)}, got {shape}."
    if fault.code == TOO_MANY_TEXTS:
        return f"{name} has {fault.got} values {model}; at most {fault.expected} are served at once: send fewer rows"
    if fault.code == BATCH_MISMATCH:
        return f"{name} batch size does not match other inputs {model}. Expected {fault.expected}, got {fault.got}."
    if fault.code == WRONG_RAW_SIZE:
        return f"input byte size mismatch for {name} {model}. Expected {fault.expected}, got {fault.got}."
    if fault.code == CONTENTS_AND_RAW:
        return f"contents field must not be specified when using raw_input_contents for {name} {model}"
    if fault.code == WRONG_CONTENTS_COUNT:
        return f"unexpected number of values for {name} {model}. Expected {fault.expected}, got {fault.got}."
    if fault.code == BAD_BYTES_LENGTH:
        return f"incomplete string length indicator for {name} {model}: each value is a 4-byte length and its bytes"
    if fault.code == VALUE_OUT_OF_RANGE:
        return f"a value of {name} does not fit {DATATYPES[<int>ref.code]} {model}"
    if fault.code == WRONG_CONTENTS_FIELD and contents_field(ref.code) == 0:
        return f"{name} is {DATATYPES[<int>ref.code]}, which travels in raw_input_contents only, {model}"
    return f"{name} has values in the wrong field of its contents {model}"


cdef object wire_error(Plan plan, const Request* request, const Fault* fault):
    return WireError(explain(plan, request, fault), FAULTS[<int>fault.code])
