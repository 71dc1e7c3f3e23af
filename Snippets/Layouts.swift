// Tensors stored as [batch, tokens, heads, channels], read and written in place.
import IntFlashAttention

let (tokens, heads, channels) = (100, 4, 32)
let stored = [1, tokens, heads, channels]
func noise(_ shape: [Int]) -> [Float] {
  (0..<shape.reduce(1, *)).map { _ in .random(in: -1...1) }
}

func run() throws {
  let (query, key, value) = (noise(stored), noise(stored), noise(stored))
  let shape = try AttentionShape(
    queryHeadCount: heads,
    keyValueHeadCount: heads,
    queryLength: tokens,
    keyValueLength: tokens,
    headDimension: channels
  )
  // `operand` reorders the dimensions of a view; no element moves.
  var output = [Float](repeating: 0, count: query.count)
  try AttentionPlan(shape).run(
    query: TensorView(query.span, shape: stored).operand(.batchTokensHeads),
    key: TensorView(key.span, shape: stored).operand(.batchTokensHeads),
    value: TensorView(value.span, shape: stored).operand(.batchTokensHeads),
    into: MutableTensorView(
      output.mutableSpan,
      shape: shape.outputShape,
      strides: [tokens * heads * channels, channels, heads * channels, 1]
    )
  )
  print("token 7, head 2: \(output[(7 * heads + 2) * channels])")

  // The same tensors copied to [batch, heads, tokens, channels] give the same bits.
  func headsFirst(_ values: [Float]) throws -> Tensor {
    let view = try TensorView(values.span, shape: stored).operand(.batchTokensHeads)
    return try Tensor(view.copyFloats(), shape: view.shape)
  }
  let q = try headsFirst(query)
  let k = try headsFirst(key)
  let v = try headsFirst(value)
  let copied = try attention(query: q.view, key: k.view, value: v.view)
  print("copied first:    \(copied.view[0, 2, 7, 0])")
}
try run()
