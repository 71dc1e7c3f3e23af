import AttentionTestSupport
import IntFlashAttention
import Testing

/// The codes that the article *Key/value caches* lists, call by call; those of masks, slopes and sinks are
/// in `CachedMaskErrorTests`.
@Suite struct CacheErrorTests {
  private static let backends: [any AttentionBackend] = [CPUBackend(), ReferenceBackend()]

  /// The code of the error that `body` ends with.
  private func code(_ body: () throws -> Void) -> AttentionError.Code? {
    do { try body() } catch { return (error as? AttentionError)?.code }
    return nil
  }

  /// A pool of two pages, two key/value heads, D = 8, Dv = 4.
  private func pool(
    _ backend: any AttentionBackend = CPUBackend(),
    precision: Precision = .int8
  ) throws(AttentionError) -> KVCachePool {
    try KVCachePool(
      keyValueHeadCount: 2,
      headDimension: 8,
      valueDimension: 4,
      capacity: 128,
      precision: precision,
      on: backend
    )
  }

  @Test(
    arguments: [
      (0, 8, 128, 64, .int8, .invalidArgument), (2, 257, 128, 64, .int8, .invalidArgument),
      (2, 8, 0, 64, .int8, .invalidArgument), (2, 8, 128, 65, .int8, .invalidArgument),
      (2, 8, 128, 64, .float8, .unsupported),
    ] as [(Int, Int, Int, Int, Precision, AttentionError.Code)]
  )
  func pools(
    _ heads: Int,
    _ dimension: Int,
    _ capacity: Int,
    _ page: Int,
    _ precision: Precision,
    _ expected: AttentionError.Code
  ) {
    for backend in Self.backends {
      let found = code {
        _ = try KVCachePool(
          keyValueHeadCount: heads,
          headDimension: dimension,
          capacity: capacity,
          pageLength: page,
          precision: precision,
          on: backend
        )
      }
      #expect(found == expected, "\(backend.name)")
    }
  }

  private func append(
    _ keyShape: [Int],
    _ valueShape: [Int],
    _ type: ElementType = .float32,
    first: Float = 1,
    order: [Int] = [0, 1, 2],
    rotary: RotaryEmbedding? = nil,
    to cache: KVCache
  ) throws(AttentionError) {
    var values = [Float](repeating: 1, count: keyShape.reduce(1, *))
    values[0] = first
    let key = try Tensor(values, shape: keyShape, elementType: type)
    let value = try Tensor(type, shape: valueShape)
    guard let rotary else {
      return try cache.append(
        key: keyShape.count == 3 ? key.view.permuted(order) : key.view,
        value: value.view
      )
    }
    try cache.append(key: key.view, value: value.view, rotary: rotary)
  }

  @Test func appends() throws {
    let long = try RotaryEmbedding(rotaryDimension: 8, positionCount: 9)
    let wide = try RotaryEmbedding(rotaryDimension: 10, positionCount: 99)
    for backend in Self.backends {
      let cache = KVCache(in: try pool(backend))
      let name = backend.name
      func found(_ body: () throws -> Void) -> AttentionError.Code? {
        let found = code(body)
        #expect(cache.count == 0 && cache.pool.freePageCount == 2, "\(name)")
        return found
      }
      #expect(found { try append([2, 9, 7], [2, 9, 4], to: cache) } == .shapeMismatch)
      #expect(found { try append([2, 9, 8], [2, 8, 4], to: cache) } == .shapeMismatch)
      #expect(found { try append([2, 9], [2, 9], to: cache) } == .invalidArgument)
      #expect(
        found { try append([2, 9, 8], [2, 9, 4], .int8, to: cache) } == .unsupportedElementType
      )
      #expect(
        found { try append([2, 8, 9], [2, 9, 4], order: [0, 2, 1], to: cache) } == .invalidArgument
      )
      #expect(
        found { try append([2, 9, 8], [2, 9, 4], first: .nan, to: cache) } == .nonFiniteInput
      )
      #expect(
        found { try append([2, 9, 8], [2, 9, 4], first: 0x1p60, to: cache) } == .valueOutOfRange
      )
      #expect(found { try append([2, 129, 8], [2, 129, 4], to: cache) } == .outOfPages)
      #expect(
        found { try append([2, 10, 8], [2, 10, 4], rotary: long, to: cache) } == .invalidArgument
      )
      #expect(
        found { try append([2, 9, 8], [2, 9, 4], rotary: wide, to: cache) } == .shapeMismatch
      )
      cache.firstPosition = 1
      #expect(
        found { try append([2, 9, 8], [2, 9, 4], rotary: long, to: cache) } == .invalidArgument
      )
      #expect(code { try cache.truncate(to: -1) } == .invalidArgument)
      #expect(code { try cache.truncate(to: 1) } == .invalidArgument)
    }
  }

  @Test func plans() throws {
    let pool = try pool()
    func found(
      _ heads: Int,
      _ options: AttentionOptions,
      rotary: RotaryEmbedding? = nil
    ) -> AttentionError.Code? {
      code {
        _ = try CachedAttention(queryHeadCount: heads, options: options, rotary: rotary, pool: pool)
      }
    }
    #expect(found(3, AttentionOptions(mask: .causal)) == .shapeMismatch)
    #expect(found(0, AttentionOptions(mask: .causal)) == .invalidArgument)
    #expect(found(4, AttentionOptions(softmaxScale: .infinity)) == .invalidArgument)
    #expect(found(4, AttentionOptions(softcap: 0)) == .invalidArgument)
    #expect(found(4, AttentionOptions(mask: .sliding(left: -1, right: 0))) == .invalidArgument)
    let wide = try RotaryEmbedding(rotaryDimension: 10, positionCount: 9)
    #expect(found(4, AttentionOptions(), rotary: wide) == .shapeMismatch)
  }

  /// Nine tokens, of which the last two have queries unless told otherwise.
  private func run(
    _ cache: KVCache,
    query: [Int] = [4, 2, 8],
    type: ElementType = .float32,
    first: Float = 1,
    offsets: [Int] = [0, 2],
    output: [Int] = [4, 2, 4],
    sums: [Int] = [4, 2],
    options: AttentionOptions = AttentionOptions(mask: .causal),
    rotary: RotaryEmbedding? = nil,
    in pool: KVCachePool? = nil
  ) throws(AttentionError) {
    var values = [Float](repeating: 1, count: query.reduce(1, *))
    values[0] = first
    let query = try Tensor(values, shape: query, elementType: type)
    var output = try Tensor(.float32, shape: output)
    var sums = try Tensor(.float32, shape: sums)
    let attention = try CachedAttention(
      queryHeadCount: 4,
      options: options,
      rotary: rotary,
      pool: pool ?? cache.pool
    )
    try attention.run(
      query: query.view,
      offsets: offsets,
      caches: [cache],
      into: output.mutableView,
      logSumExp: sums.mutableView
    )
  }

  @Test func runs() throws {
    let short = try RotaryEmbedding(rotaryDimension: 8, positionCount: 8)
    let blocks = try VisibleBlocks(queryBlockLength: 4, keyBlockLength: 4, visible: [[0], [1]])
    for backend in Self.backends {
      let cache = KVCache(in: try pool(backend))
      let other = try pool(backend)
      try append([2, 9, 8], [2, 9, 4], to: cache)
      try run(cache)
      #expect(code { try run(cache, query: [4, 2, 7]) } == .shapeMismatch)
      #expect(code { try run(cache, output: [4, 2, 5]) } == .shapeMismatch)
      #expect(code { try run(cache, sums: [4, 3]) } == .shapeMismatch)
      #expect(code { try run(cache, type: .int8) } == .unsupportedElementType)
      #expect(code { try run(cache, offsets: [0, 1]) } == .invalidArgument)
      #expect(code { try run(cache, offsets: [0, 1, 2]) } == .invalidArgument)
      #expect(code { try run(cache, in: other) } == .invalidArgument)
      #expect(code { try run(cache, first: -.infinity) } == .nonFiniteInput)
      #expect(code { try run(cache, first: 0x1p60) } == .valueOutOfRange)
      let large = AttentionOptions(softmaxScale: 0x1p78, mask: .causal)
      #expect(code { try run(cache, options: large) } == .valueOutOfRange)
      #expect(code { try run(cache, rotary: short) } == .invalidArgument)
      let few = AttentionOptions(mask: .causal, blocks: blocks)
      #expect(code { try run(cache, options: few) } == .shapeMismatch)
    }
  }

  @Test func overlapsAreRefused() throws {
    let cache = KVCache(in: try pool())
    try append([2, 9, 8], [2, 9, 4], to: cache)
    let memory = try Tensor(.float32, shape: [4, 2, 8])
    let attention = try CachedAttention(queryHeadCount: 4, pool: cache.pool)
    let found = code {
      try attention.run(
        query: memory.view,
        cache: cache,
        into: unsafe MutableTensorView(
          unsafeBase: memory.storage,
          elementType: .float32,
          shape: [4, 2, 4],
          strides: [8, 4, 1]
        )
      )
    }
    #expect(found == .overlappingOutput)
  }

  @Test func snapshots() throws {
    let cache = KVCache(in: try pool())
    try append([2, 100, 8], [2, 100, 4], to: cache)
    let snapshot = try cache.snapshot()
    let reference = try pool(ReferenceBackend())
    #expect(code { _ = try KVCache(in: reference).snapshot() } == .unsupported)
    #expect(code { _ = try KVCache(in: reference, restoring: snapshot) } == .unsupported)
    let other = try pool(precision: .float32)
    #expect(code { _ = try KVCache(in: other, restoring: snapshot) } == .shapeMismatch)
    #expect(code { _ = try KVCache(in: cache.pool, restoring: snapshot) } == .outOfPages)
  }
}
