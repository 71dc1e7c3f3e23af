// A prompt into a cache, then token by token.
import IntFlashAttention

func noise(_ shape: [Int]) throws -> Tensor {
  try Tensor((0..<shape.reduce(1, *)).map { _ in .random(in: -1...1) }, shape: shape)
}

let (queryHeads, keyHeads, dimension) = (6, 2, 64)
let pool = try KVCachePool(
  keyValueHeadCount: keyHeads,
  headDimension: dimension,
  capacity: 1024,
  precision: .int8
)
let cache = KVCache(in: pool)
let attention = try CachedAttention(queryHeadCount: queryHeads, pool: pool)

@MainActor func step(tokens: Int) throws {
  let key = try noise([keyHeads, tokens, dimension])
  let value = try noise([keyHeads, tokens, dimension])
  try cache.append(key: key.view, value: value.view)
  let query = try noise([queryHeads, tokens, dimension])
  var output = try Tensor(.float32, shape: [queryHeads, tokens, dimension])
  try attention.run(query: query.view, cache: cache, into: output.mutableView)
}

try step(tokens: 300)
for _ in 0..<5 { try step(tokens: 1) }
print("\(cache.count) tokens, \(pool.bytesPerToken) bytes per token and head")
