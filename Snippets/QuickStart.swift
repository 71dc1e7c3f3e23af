// Causal attention in INT8: eight query heads share two key/value heads.
import IntFlashAttention

func noise(_ shape: [Int]) throws -> Tensor {
  try Tensor((0..<shape.reduce(1, *)).map { _ in .random(in: -1...1) }, shape: shape)
}
let query = try noise([8, 256, 64])  // heads, tokens, channels
let key = try noise([2, 256, 64])
let value = try noise([2, 256, 64])
let output = try attention(
  query: query.view,
  key: key.view,
  value: value.view,
  options: AttentionOptions(mask: .causal)
)
print("output \(output.shape), last token starts with \(output.view[0, 0, 255, 0])")
