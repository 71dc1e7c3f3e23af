// A boolean mask, a window of visible blocks with linear biases, and attention sinks.
import IntFlashAttention

let shape = try AttentionShape(
  queryHeadCount: 4,
  keyValueHeadCount: 2,
  queryLength: 256,
  keyValueLength: 256,
  headDimension: 64
)
func noise(_ shape: [Int]) throws -> Tensor {
  try Tensor((0..<shape.reduce(1, *)).map { _ in .random(in: -1...1) }, shape: shape)
}
let query = try noise(shape.queryShape)
let key = try noise(shape.keyShape)
let value = try noise(shape.valueShape)

// Two documents of 100 and 156 tokens in one sequence: a query sees the keys of its own document.
let isVisible = (0..<256 * 256).map { ($0 / 256 < 100) == ($0 % 256 < 100) }
let mask = try TensorView(isVisible.span, shape: [256, 256])
let documents = try attention(
  query: query.view,
  key: key.view,
  value: value.view,
  mask: mask,
  options: AttentionOptions(mask: .causal)
)

// Every block of 64 queries sees the first 64 keys and its own, nearer keys more than others.
let blocks = try VisibleBlocks(
  queryBlockLength: 64,
  keyBlockLength: 64,
  visible: [[0], [0, 1], [0, 2], [0, 3]]
)
let slopes = Alibi.slopes(headCount: 4)
let sparse = try attention(
  query: query.view,
  key: key.view,
  value: value.view,
  alibiSlopes: TensorView(slopes.span, shape: [4]),
  options: AttentionOptions(mask: .causal, blocks: blocks)
)

// A learned logit per head that takes its part of the softmax.
let logits: [Float] = [0.5, -1, 2, 0]
let withSinks = try attention(
  query: query.view,
  key: key.view,
  value: value.view,
  sinks: TensorView(logits.span, shape: [4])
)

for (name, first) in [
  ("documents", documents.view[0, 0, 200, 0]), ("blocks and ALiBi", sparse.view[0, 0, 200, 0]),
  ("sinks", withSinks.view[0, 0, 200, 0]),
] {
  print("\(name): first channel of row 200 is \(first)")
}
