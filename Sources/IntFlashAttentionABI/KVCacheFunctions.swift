// Names are those of the header, which documents them.
// swift-format-ignore-file: AlwaysUseLowerCamelCase, AllPublicDeclarationsHaveDocumentation
public import CIntFlashAttention
import IntFlashAttention
import TensorFiles

private func pool(_ handle: OpaquePointer?) throws(AttentionError) -> KVCachePool {
  unsafe try Handle.object(handle, "pool", as: KVCachePool.self)
}

private func cache(
  _ handle: OpaquePointer?,
  _ name: String = "cache"
) throws(AttentionError) -> KVCache {
  unsafe try Handle.object(handle, name, as: KVCache.self)
}

// MARK: Pool

@c @implementation
public func intfa_kv_pool_create(
  _ shape: UnsafePointer<intfa_kv_pool_shape>!,
  _ precision: UnsafePointer<CChar>!,
  _ backend: UnsafePointer<intfa_backend>!,
  _ pool: UnsafeMutablePointer<OpaquePointer?>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let target = unsafe try require(pool, "pool")
    let sizes = unsafe try CStruct.read(shape, "shape", intfa_kv_pool_shape())
    let pool = try KVCachePool(
      keyValueHeadCount: Int(sizes.key_value_head_count),
      headDimension: Int(sizes.head_dimension),
      valueDimension: Int(sizes.value_dimension),
      capacity: Int(sizes.capacity),
      pageLength: Int(sizes.page_length),
      precision: unsafe try Precision(named: precision),
      on: unsafe try makeBackend(backend)
    )
    unsafe target.pointee = Handle.make(pool)
  }
}

@c @implementation
public func intfa_kv_pool_get_information(
  _ pool: OpaquePointer!,
  _ information: UnsafeMutablePointer<intfa_kv_pool_information>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let pool = unsafe try IntFlashAttentionABI.pool(pool)
    var result = unsafe intfa_kv_pool_information()
    unsafe result.thread_count = Int32(pool.threadCount)
    unsafe result.page_count = Int64(pool.pageCount)
    unsafe result.free_page_count = Int64(pool.freePageCount)
    unsafe result.page_length = Int64(pool.pageLength)
    unsafe result.bytes_per_token = pool.bytesPerToken
    unsafe result.precision = CText.permanent(pool.precision.rawValue)
    unsafe result.backend = CText.permanent(pool.backendName)
    unsafe result.instruction_set = CText.permanent(pool.instructionSet)
    unsafe try CStruct.write(result, to: information, "information")
  }
}

@c @implementation
public func intfa_kv_pool_destroy(_ pool: OpaquePointer!) {
  unsafe Handle.destroy(pool, as: KVCachePool.self)
}

// MARK: Cache

@c @implementation
public func intfa_kv_cache_create(
  _ pool: OpaquePointer!,
  _ cache: UnsafeMutablePointer<OpaquePointer?>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let target = unsafe try require(cache, "cache")
    let pool = unsafe try IntFlashAttentionABI.pool(pool)
    unsafe target.pointee = Handle.make(KVCache(in: pool))
  }
}

@c @implementation
public func intfa_kv_cache_append(
  _ cache: OpaquePointer!,
  _ key: UnsafePointer<intfa_tensor>!,
  _ value: UnsafePointer<intfa_tensor>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let cache = unsafe try IntFlashAttentionABI.cache(cache)
    let key = unsafe try CTensor.operand(key, "key").batched("key", rank: 4)
    let value = unsafe try CTensor.operand(value, "value").batched("value", rank: 4)
    try cache.append(key: key.view, value: value.view)
  }
}

@c @implementation
public func intfa_kv_cache_append_rotary(
  _ cache: OpaquePointer!,
  _ key: UnsafePointer<intfa_tensor>!,
  _ value: UnsafePointer<intfa_tensor>!,
  _ rotary: OpaquePointer!
) -> intfa_status {
  status { () throws(AttentionError) in
    let cache = unsafe try IntFlashAttentionABI.cache(cache)
    let key = unsafe try CTensor.operand(key, "key").batched("key", rank: 4)
    let value = unsafe try CTensor.operand(value, "value").batched("value", rank: 4)
    let rotary = unsafe try RotaryObject.embedding(rotary)
    try cache.append(key: key.view, value: value.view, rotary: rotary)
  }
}

@c @implementation
public func intfa_kv_cache_set_first_position(
  _ cache: OpaquePointer!,
  _ position: Int64
) -> intfa_status {
  status { () throws(AttentionError) in
    let cache = unsafe try IntFlashAttentionABI.cache(cache)
    guard (0...Int64(AttentionShape.largestLength)).contains(position) else {
      throw AttentionError(
        .invalidArgument,
        "position is \(position); it must be between 0 and \(AttentionShape.largestLength)"
      )
    }
    cache.firstPosition = Int(position)
  }
}

@c @implementation
public func intfa_kv_cache_get_first_position(
  _ cache: OpaquePointer!,
  _ position: UnsafeMutablePointer<Int64>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let cache = unsafe try IntFlashAttentionABI.cache(cache)
    let target = unsafe try require(position, "position")
    unsafe target.pointee = Int64(cache.firstPosition)
  }
}

@c @implementation
public func intfa_kv_cache_fork(
  _ cache: OpaquePointer!,
  _ fork: UnsafeMutablePointer<OpaquePointer?>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let target = unsafe try require(fork, "fork")
    let cache = unsafe try IntFlashAttentionABI.cache(cache)
    unsafe target.pointee = Handle.make(cache.fork())
  }
}

@c @implementation
public func intfa_kv_cache_truncate(_ cache: OpaquePointer!, _ count: Int64) -> intfa_status {
  status { () throws(AttentionError) in
    try unsafe IntFlashAttentionABI.cache(cache).truncate(to: Int(count))
  }
}

@c @implementation
public func intfa_kv_cache_count(
  _ cache: OpaquePointer!,
  _ count: UnsafeMutablePointer<Int64>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let cache = unsafe try IntFlashAttentionABI.cache(cache)
    let target = unsafe try require(count, "count")
    unsafe target.pointee = Int64(cache.count)
  }
}

// MARK: Files

@c @implementation
public func intfa_kv_cache_save(
  _ cache: OpaquePointer!,
  _ path: UnsafePointer<CChar>!
) -> intfa_status {
  statusOfParts { () throws(PartFailure) in
    let (snapshot, path) = try attempt { () throws(AttentionError) in
      let cache = unsafe try IntFlashAttentionABI.cache(cache)
      let path = unsafe try text(path, "path")
      return (try cache.snapshot(), path)
    }
    try attempt { () throws(TensorFileError) in try snapshot.write(to: path) }
  }
}

@c @implementation
public func intfa_kv_cache_load(
  _ pool: OpaquePointer!,
  _ path: UnsafePointer<CChar>!,
  _ cache: UnsafeMutablePointer<OpaquePointer?>!
) -> intfa_status {
  statusOfParts { () throws(PartFailure) in
    let (target, pool, path) = unsafe try attempt { () throws(AttentionError) in
      let target = unsafe try require(cache, "cache")
      return unsafe (target, try IntFlashAttentionABI.pool(pool), try text(path, "path"))
    }
    let snapshot = try attempt { () throws(TensorFileError) in try KVCacheSnapshot(path: path) }
    let cache = try attempt { () throws(AttentionError) in
      try KVCache(in: pool, restoring: snapshot)
    }
    unsafe target.pointee = Handle.make(cache)
  }
}

@c @implementation
public func intfa_kv_cache_destroy(_ cache: OpaquePointer!) {
  unsafe Handle.destroy(cache, as: KVCache.self)
}

// MARK: Run

@c @implementation
public func intfa_kv_cache_run(
  _ pool: OpaquePointer!,
  _ operands: UnsafePointer<intfa_kv_operands>!,
  _ options: UnsafePointer<intfa_options>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let pool = unsafe try IntFlashAttentionABI.pool(pool)
    let operands = unsafe try CStruct.read(operands, "operands", intfa_kv_operands())
    let query = unsafe try CTensor.operand(operands.query, "query").batched("query", rank: 4)
    let output = unsafe try CTensor.operand(operands.output, "output").batched("output", rank: 4)
    let sums = unsafe try CTensor.optionalOperand(operands.log_sum_exp, "log_sum_exp")
    let mask = unsafe try CTensor.optionalOperand(operands.mask, "mask")
    let slopes = unsafe try CTensor.optionalOperand(operands.alibi_slopes, "alibi_slopes")
    let sinks = unsafe try CTensor.optionalOperand(operands.sinks, "sinks")
    let caches = unsafe try sequences(operands)
    let offsets = unsafe try offsets(operands, count: caches.count, queries: query.shape[2])
    let attention = try CachedAttention(
      queryHeadCount: query.shape[1],
      options: unsafe try AttentionOptions(options, positions: positions(caches, offsets)),
      rotary: unsafe try RotaryObject.optionalEmbedding(operands.rotary),
      pool: pool
    )
    if let sums {
      try attention.run(
        query: query.view,
        offsets: offsets,
        caches: caches,
        mask: mask?.view,
        alibiSlopes: slopes?.view,
        sinks: sinks?.view,
        into: output.mutableView,
        logSumExp: sums.mutableView
      )
    } else {
      try attention.run(
        query: query.view,
        offsets: offsets,
        caches: caches,
        mask: mask?.view,
        alibiSlopes: slopes?.view,
        sinks: sinks?.view,
        into: output.mutableView
      )
    }
  }
}

private func sequences(_ operands: intfa_kv_operands) throws(AttentionError) -> [KVCache] {
  let count = unsafe try checkedCount(operands.cache_count, "cache_count")
  guard count > 0 else { return [] }
  let handles = unsafe try require(operands.caches, "caches")
  var caches: [KVCache] = []
  for index in 0..<count { caches.append(unsafe try cache(handles[index], "caches[\(index)]")) }
  return caches
}

/// Where the queries of each sequence stand; nowhere where offsets or tokens do not fit, which the call
/// refuses.
private func positions(_ caches: [KVCache], _ offsets: [Int]) -> [Range<Int>] {
  zip(caches, zip(offsets, offsets.dropFirst())).map { cache, bounds in
    let (queries, overflow) = bounds.1.subtractingReportingOverflow(bounds.0)
    guard !overflow, (0...cache.count).contains(queries) else { return 0..<0 }
    return cache.count - queries..<cache.count
  }
}

private func offsets(
  _ operands: intfa_kv_operands,
  count: Int,
  queries: Int
) throws(AttentionError) -> [Int] {
  guard let offsets = unsafe operands.offsets else {
    guard count == 1 else {
      throw AttentionError(
        .invalidArgument,
        "offsets is NULL for \(count) caches; that is for one cache only"
      )
    }
    return [0, queries]
  }
  return unsafe UnsafeBufferPointer(start: offsets, count: count + 1).map(Int.init)
}
