// Two sequences in one call, with a bidirectional prefix, a mask per query, linear biases and sinks.
import IntFlashAttention

func noise(_ shape: [Int]) throws -> Tensor {
  try Tensor((0..<shape.reduce(1, *)).map { _ in .random(in: -1...1) }, shape: shape)
}

let (queryHeads, keyHeads, dimension) = (4, 2, 64)
let pool = try KVCachePool(keyValueHeadCount: keyHeads, headDimension: dimension, capacity: 1024)
var caches: [KVCache] = []
for tokens in [300, 90] {
  let cache = KVCache(in: pool)
  let key = try noise([keyHeads, tokens, dimension])
  let value = try noise([keyHeads, tokens, dimension])
  try cache.append(key: key.view, value: value.view)
  caches.append(cache)
}

// Every query sees the first 20 tokens, and those up to its own.
let attention = try CachedAttention(
  queryHeadCount: queryHeads,
  options: AttentionOptions(mask: .prefixCausal(prefix: 20)),
  pool: pool
)
// The last token of the first sequence, the last two of the second: three rows. Columns are tokens; what
// lies beyond a sequence is not read.
let query = try noise([queryHeads, 3, dimension])
let isVisible = (0..<3 * 300).map { $0 % 300 < 200 || $0 % 300 >= 280 }
let mask = try TensorView(isVisible.span, shape: [3, 300])
let slopes = Alibi.slopes(headCount: queryHeads)
let sinks: [Float] = [0.5, -1, 2, 0]
var output = try Tensor(.float32, shape: [queryHeads, 3, dimension])
try attention.run(
  query: query.view,
  offsets: [0, 1, 3],
  caches: caches,
  mask: mask,
  alibiSlopes: TensorView(slopes.span, shape: [queryHeads]),
  sinks: TensorView(sinks.span, shape: [queryHeads]),
  into: output.mutableView
)
print("last token of the first sequence starts with \(output.view.copyFloats()[0])")
