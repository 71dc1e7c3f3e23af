extension ReferenceBackend: CachingBackend {
  package func makeCacheStore(for layout: KVCacheLayout) -> any KVCacheStore {
    ReferenceCacheStore(layout)
  }
}

/// Caches without memory of their own: a sequence keeps its tokens itself, and a fork copies them.
///
/// Pages are counted by the pool and mean nothing here, so that what they do to other backends shows.
final class ReferenceCacheStore: KVCacheStore {
  let layout: KVCacheLayout

  init(_ layout: KVCacheLayout) { self.layout = layout }

  var bytesPerToken: Double {
    layout.recipe.keyValueBytesPerToken(
      headDimension: layout.headDimension,
      valueDimension: layout.valueDimension
    )
  }
  var backendName: String { "reference" }
  var instructionSet: String { "none" }
  var threadCount: Int { ThreadPool.shared.threadCount }

  func makeSequence() -> any KVCacheSequence { ReferenceCacheSequence(layout) }

  func copyUnit(from source: Int32, to target: Int32) {}

  // MARK: Attend

  func attend(_ call: KVCacheCall) throws(AttentionError) {
    let recipe = layout.recipe
    guard call.query.shape.allSatisfy({ $0 > 0 }) else { return }
    try InputCheck.requireLogits(
      largestQuery: InputCheck.largest(of: call.query, .query, recipe.query),
      largestKey: call.parts.reduce(0) {
        max($0, ($1.sequence as? ReferenceCacheSequence)?.largestKey ?? 0)
      },
      headDimension: layout.headDimension,
      softmaxScale: call.softmaxScale
    )
    for part in call.parts where !part.queries.isEmpty {
      try ReferenceMask.check(call.mask, rows: part.queries, keys: part.count)
    }
    for index in call.parts.indices where !call.parts[index].queries.isEmpty {
      for head in 0..<call.queryHeadCount { try attend(call, sequence: index, head: head) }
    }
  }

  private func attend(_ call: KVCacheCall, sequence index: Int, head: Int) throws(AttentionError) {
    let part = call.parts[index]
    let groupSize = call.queryHeadCount / layout.keyValueHeadCount
    guard let sequence = part.sequence as? ReferenceCacheSequence else { return }
    let tokens = sequence.heads[head / groupSize]
    let mask = ReferenceMask(call, sequence: index, head: head)
    let all = HeadRows(call.query.view, batch: 0, head: head)
    let query = HeadRows(
      count: part.queries.count,
      dimension: layout.headDimension,
      values: part.queries.flatMap { all.row($0) }
    )
    func descriptor(_ recipe: QuantizationRecipe) throws(AttentionError) -> AttentionDescriptor {
      var options = call.options
      options.softmaxScale = call.softmaxScale
      // They count from the first token of the sequence, which the mask does.
      options.blocks = nil
      return try AttentionDescriptor(
        shape: AttentionShape(
          queryHeadCount: call.queryHeadCount,
          keyValueHeadCount: layout.keyValueHeadCount,
          queryLength: part.queries.count,
          keyValueLength: part.count,
          headDimension: layout.headDimension,
          valueDimension: layout.valueDimension
        ),
        recipe: recipe,
        options: options
      )
    }
    let hasCodes = ReferenceCacheHead.hasCodes(layout.recipe)
    let kept = tokens.keys.count / layout.headDimension
    let asTheyCame = ReferenceHead(
      try descriptor(hasCodes ? QuantizationRecipe() : layout.recipe),
      query: query,
      key: HeadRows(count: kept, dimension: layout.headDimension, values: tokens.keys),
      value: HeadRows(count: kept, dimension: layout.valueDimension, values: tokens.values),
      mask: mask
    )
    let coded = try descriptor(layout.recipe)
    let codes = ReferenceHead(coded, query: query, cached: tokens, mask: mask)
    ThreadPool.shared.run(itemCount: part.queries.count) { row, _ in
      let seen = call.options.mask.visibleKeys(
        row: row,
        queryLength: part.queries.count,
        keyValueLength: part.count
      )
      let isExact = !hasCodes || seen.upperBound <= ReferenceCacheHead.exactLength
      let result = (isExact ? asTheyCame : codes).attend(row: row)
      store(result, call, head: head, token: part.queries.lowerBound + row)
    }
  }

  private func store(_ result: ReferenceHead.Result, _ call: KVCacheCall, head: Int, token: Int) {
    let output = call.output.mutableView
    let start = head * output.strides[1] + token * output.strides[2]
    for (channel, value) in result.output.enumerated() {
      output.store(Float(value), atOffset: start + channel)
    }
    guard let logSumExp = call.logSumExp?.mutableView else { return }
    let place = head * logSumExp.strides[0] + token * logSumExp.strides[1]
    logSumExp.store(Float(result.logSumExp), atOffset: place)
  }
}

/// The tokens of one sequence, head by head.
final class ReferenceCacheSequence: KVCacheSequence {
  private(set) var heads: [ReferenceCacheHead]
  private let recipe: QuantizationRecipe
  /// Bound of the magnitude of every key.
  private(set) var largestKey: Float = 0
  private var largestNewKey: Float = 0

  init(_ layout: KVCacheLayout) {
    recipe = layout.recipe
    heads = (0..<layout.keyValueHeadCount).map { _ in ReferenceCacheHead(layout) }
  }

  private init(forkOf other: ReferenceCacheSequence) {
    recipe = other.recipe
    heads = other.heads
    largestKey = other.largestKey
  }

  func fork(count: Int, units: [Int32]) -> any KVCacheSequence {
    ReferenceCacheSequence(forkOf: self)
  }

  func check(_ tokens: KVCacheTokens) throws(AttentionError) {
    let key = try InputCheck.largest(of: tokens.key, .key, recipe.key)
    _ = try InputCheck.largest(of: tokens.value, .value, recipe.value)
    largestNewKey = key
  }

  func append(_ tokens: KVCacheTokens, count: Int, units: [Int32]) {
    largestKey = max(largestKey, largestNewKey)
    for head in heads.indices {
      heads[head].append(
        key: HeadRows(tokens.key.view, batch: 0, head: head),
        value: HeadRows(tokens.value.view, batch: 0, head: head)
      )
    }
  }

  func truncate(to count: Int, units: [Int32]) {
    for head in heads.indices { heads[head].truncate(to: count) }
  }
}
