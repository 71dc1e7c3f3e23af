import AttentionTestSupport
import IntFlashAttention
import Testing

/// A cache that was taken apart and put together again goes on as if nothing had happened.
@Suite struct KVCacheSnapshotTests {
  private func pool(
    _ sequence: CachedInputs,
    _ precision: Precision,
    pageLength: Int = 64,
    capacity: Int = 700,
    on backend: any AttentionBackend = CPUBackend()
  ) throws -> KVCachePool {
    try KVCachePool(
      keyValueHeadCount: sequence.shape.keyValueHeadCount,
      headDimension: sequence.shape.headDimension,
      valueDimension: sequence.shape.valueDimension,
      capacity: capacity,
      pageLength: pageLength,
      precision: precision,
      on: backend
    )
  }

  /// Appends the rest of the sequence to both, and compares what they attend to.
  ///
  /// Floats are added in pieces of neighbouring pages, which are the same here.
  private func expectSame(
    _ sequence: CachedInputs,
    _ cache: KVCache,
    _ restored: KVCache,
    _ comment: Comment
  ) throws {
    let length = sequence.shape.keyValueLength
    #expect(restored.count == cache.count, comment)
    for end in [cache.count + 1, min(cache.count + 40, length), length] where end <= length {
      guard cache.count > 0 || end > 0, end > cache.count else { continue }
      try sequence.append(cache.count..<end, to: cache)
      try sequence.append(restored.count..<end, to: restored)
      let expected = try sequence.attend(0..<end, cache)
      let actual = try sequence.attend(0..<end, restored)
      let isSame = actual == expected
      #expect(isSame, comment)
    }
  }

  static let lengths = [0, 1, 63, 64, 65, 100, 192, 193, 256, 319, 320, 330]

  @Test(arguments: InstructionSet.supported, KVCacheTests.precisions)
  func restoredCachesGoOnWithTheSameBits(
    _ set: InstructionSet,
    _ precision: Precision
  ) throws {
    let backend = CPUBackend(instructionSet: set)
    for (kind, dimension, valueDimension) in [
      (InputKind.normal, 64, 64), (.hugeValue, 24, 40), (.sink, 33, 17),
    ] {
      let sequence = try CachedInputs(
        length: 420,
        headDimension: dimension,
        valueDimension: valueDimension,
        kind
      )
      for length in Self.lengths {
        let cache = KVCache(in: try pool(sequence, precision, on: backend))
        try sequence.append(0..<length, to: cache)
        cache.firstPosition = 3
        let snapshot = try cache.snapshot()
        let restored = try KVCache(
          in: try pool(sequence, precision, on: backend),
          restoring: snapshot
        )
        #expect(restored.firstPosition == 3)
        try expectSame(sequence, cache, restored, "\(kind), \(length) tokens")
      }
    }
  }

  /// Integers have the same bits on every instruction set, and so have snapshots.
  @Test(arguments: [Precision.int8, .int4, .int4KeyValue])
  func snapshotsMoveBetweenInstructionSets(_ precision: Precision) throws {
    let sequence = try CachedInputs(length: 420, headDimension: 80, .hugeValue)
    for length in [40, 64, 300] {
      let portable = CPUBackend(instructionSet: .portable)
      let cache = KVCache(in: try pool(sequence, precision, on: portable))
      try sequence.append(0..<length, to: cache)
      let snapshot = try cache.snapshot()
      for set in InstructionSet.supported {
        let other = try KVCache(
          in: try pool(sequence, precision, on: CPUBackend(instructionSet: set)),
          restoring: snapshot
        )
        let again = try other.snapshot()
        #expect(again.names == snapshot.names)
        for name in snapshot.names {
          let isSame = again.part(named: name)?.bytes == snapshot.part(named: name)?.bytes
          #expect(isSame, "\(name)")
        }
        let back = try KVCache(in: try pool(sequence, precision, on: portable), restoring: again)
        let isSame = try sequence.attend(0..<length, back) == sequence.attend(0..<length, cache)
        #expect(isSame, "\(set), \(length) tokens")
      }
    }
  }

  @Test(arguments: KVCacheTests.precisions)
  func forksTruncationsAndOtherPagesAreRestoredToo(_ precision: Precision) throws {
    let sequence = try CachedInputs(length: 420)
    let source = try pool(sequence, precision, pageLength: 192, capacity: 1400)
    let cache = KVCache(in: source)
    try sequence.append(0..<300, to: cache)
    let fork = cache.fork()
    try fork.truncate(to: 230)
    try sequence.append(230..<270, to: fork)
    for (kept, count) in [(cache, 300), (fork, 270)] {
      let snapshot = try kept.snapshot()
      let restored = try KVCache(
        in: try pool(sequence, precision, pageLength: 64),
        restoring: snapshot
      )
      let again = try restored.snapshot()
      for name in snapshot.names {
        let isSame = again.part(named: name)?.bytes == snapshot.part(named: name)?.bytes
        #expect(isSame, "\(name), \(count) tokens")
      }
      // The last bits of floats are those of where pages lie.
      guard precision != .bfloat16, precision != .float32 else { continue }
      let isSame = try sequence.attend(0..<count, restored) == sequence.attend(0..<count, kept)
      #expect(isSame, "\(count) tokens")
    }
  }

  @Test func withoutPagesThePoolIsAsItWas() throws {
    let sequence = try CachedInputs(length: 200)
    let cache = KVCache(in: try pool(sequence, .int8))
    try sequence.append(0..<200, to: cache)
    let small = try pool(sequence, .int8, capacity: 128)
    let snapshot = try cache.snapshot()
    let error = #expect(throws: AttentionError.self) {
      try KVCache(in: small, restoring: snapshot)
    }
    #expect(error?.code == .outOfPages)
    #expect(small.freePageCount == small.pageCount)
  }

  @Test func otherPoolsAreRefused() throws {
    let sequence = try CachedInputs(length: 70)
    let cache = KVCache(in: try pool(sequence, .int8))
    try sequence.append(0..<70, to: cache)
    let snapshot = try cache.snapshot()
    let others = [
      try pool(sequence, .int4),
      try pool(try CachedInputs(keyValueHeads: 4, length: 1), .int8),
      try pool(try CachedInputs(length: 1, headDimension: 32, valueDimension: 64), .int8),
      try pool(try CachedInputs(length: 1, valueDimension: 32), .int8),
    ]
    for other in others {
      let error = #expect(throws: AttentionError.self) {
        try KVCache(in: other, restoring: snapshot)
      }
      #expect(error?.code == .shapeMismatch)
    }
  }

  /// Each tensor with one element that no cache holds.
  @Test func valuesThatNoCacheHoldsAreRefused() throws {
    let sequence = try CachedInputs(length: 300)
    let cache = KVCache(in: try pool(sequence, .int4KeyValue))
    try sequence.append(0..<300, to: cache)
    let snapshot = try cache.snapshot()
    let whole = Dictionary(
      uniqueKeysWithValues: snapshot.names.compactMap { name in
        snapshot.part(named: name).map { (name, $0) }
      }
    )
    func code(_ parts: [String: KVCacheSnapshot.Part], count: Int = 300) -> AttentionError.Code? {
      do throws(AttentionError) {
        _ = try KVCacheSnapshot(
          precision: .int4KeyValue,
          keyValueHeadCount: 2,
          headDimension: 64,
          valueDimension: 64,
          count: count,
          firstPosition: 0,
          parts: parts
        )
      } catch { return error.code }
      return nil
    }
    #expect(code(whole) == nil)
    #expect(code(whole, count: 299) == .shapeMismatch)
    #expect(code(whole, count: -1) == .invalidArgument)
    #expect(code(whole, count: AttentionShape.largestLength) == .shapeMismatch)
    let changes: [(name: KVCacheSnapshot.Name, index: Int, value: Float)] = [
      (.firstKey, 5, .nan), (.firstValue, 5, .infinity), (.keyInt4, 16 * 64, 18),
      (.keyInt4, 16 * 64, 0), (.keyInt4, 17 * 64, -128), (.valueInt4, 32, 18),
      (.openKey, 0, -128), (.openValue, 9, -128), (.keyScale, 2, -1), (.valueWeight, 2, 1.5),
      (.valueWeight, 2, -1), (.valueWeight, 2, 128), (.outlier, 0, 64), (.outlier, 1, -2),
      (.largest, 0, .nan),
    ]
    for (name, index, value) in changes {
      let part = try #require(snapshot.part(name))
      var values = part.floats
      values[index] = value
      var parts = whole
      parts[name.rawValue] = KVCacheSnapshot.Part(
        try Tensor(values, shape: part.tensor.shape, elementType: part.tensor.elementType)
      )
      #expect(code(parts) == .invalidArgument, "\(name) \(value)")
    }
    for name in snapshot.names {
      var parts = whole
      parts[name] = nil
      #expect(code(parts) == .invalidArgument, "without \(name)")
    }
    var more = whole
    more["other"] = whole["largest"]
    #expect(code(more) == .invalidArgument)
  }
}
