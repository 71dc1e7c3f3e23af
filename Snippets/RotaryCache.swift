// Keys and queries that get their rotary positions in the cache, and a cache that is kept and goes on.
import IntFlashAttention

func noise(_ shape: [Int]) throws -> Tensor {
  try Tensor((0..<shape.reduce(1, *)).map { _ in .random(in: -1...1) }, shape: shape)
}

let (queryHeads, keyHeads, dimension) = (6, 2, 64)
let pool = try KVCachePool(
  keyValueHeadCount: keyHeads,
  headDimension: dimension,
  capacity: 1024,
  precision: .int4
)
let rotary = try RotaryEmbedding(rotaryDimension: dimension, positionCount: 1024)
let attention = try CachedAttention(queryHeadCount: queryHeads, rotary: rotary, pool: pool)

@MainActor func step(_ cache: KVCache, tokens: Int) throws {
  let key = try noise([keyHeads, tokens, dimension])
  let value = try noise([keyHeads, tokens, dimension])
  try cache.append(key: key.view, value: value.view, rotary: rotary)
  let query = try noise([queryHeads, tokens, dimension])
  var output = try Tensor(.float32, shape: [queryHeads, tokens, dimension])
  try attention.run(query: query.view, cache: cache, into: output.mutableView)
}

let cache = KVCache(in: pool)
try step(cache, tokens: 300)
// TensorFiles writes and reads a snapshot as a file.
let snapshot = try cache.snapshot()
let restored = try KVCache(in: pool, restoring: snapshot)
try step(restored, tokens: 1)
print("\(snapshot.count) tokens kept, \(restored.count) in the cache that went on")
