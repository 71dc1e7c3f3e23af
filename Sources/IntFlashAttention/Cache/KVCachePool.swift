internal import Synchronization

/// Memory for the keys and values of many sequences, in pages that sequences can share.
///
/// A ``KVCache`` takes pages as tokens come and gives them back when it goes. Memory is reserved for
/// the whole capacity but, on systems that commit pages when they are touched, taken as it fills.
public final class KVCachePool: Sendable {
  /// Hkv.
  public let keyValueHeadCount: Int
  /// D.
  public let headDimension: Int
  /// Dv.
  public let valueDimension: Int
  /// How tokens are stored, and the recipe that attends to them.
  public let precision: Precision
  /// Tokens per page.
  public let pageLength: Int
  /// Pages in all.
  public let pageCount: Int

  let store: any KVCacheStore
  private let pages: Mutex<Pages>

  private struct Pages {
    /// Sequences that have the page.
    var owners: [Int32]
    /// Pages without owner; the last is taken first.
    var free: [Int32]
  }

  /// Reserves memory for a number of tokens.
  ///
  /// - Parameters:
  ///   - keyValueHeadCount: Hkv, at least 1.
  ///   - headDimension: D, 1…256.
  ///   - valueDimension: Dv, 1…256; nil is D.
  ///   - capacity: tokens of all sequences together; rounded up to whole pages.
  ///   - pageLength: tokens per page, a positive multiple of 64. Sequences that share a prefix share
  ///     whole pages of it.
  ///   - precision: `int8`, `int4`, `int4KeyValue`, `bfloat16` or `float32`.
  ///   - backend: where attention is computed.
  /// - Throws: `AttentionError` with code `.invalidArgument`, `.unsupported` for a precision or
  ///   backend without caches, `.outOfMemory`, `.unavailable`.
  public init(
    keyValueHeadCount: Int,
    headDimension: Int,
    valueDimension: Int? = nil,
    capacity: Int,
    pageLength: Int = 64,
    precision: Precision = .int8,
    on backend: any AttentionBackend = CPUBackend()
  ) throws(AttentionError) {
    let unit = KVCacheLayout.unitLength
    guard pageLength >= unit, pageLength.isMultiple(of: unit) else {
      throw AttentionError(
        .invalidArgument,
        "pageLength is \(pageLength); it must be a positive multiple of \(unit)"
      )
    }
    let largest = AttentionShape.largestLength
    guard capacity >= 1, capacity <= largest - pageLength else {
      throw AttentionError(
        .invalidArgument,
        "capacity is \(capacity); it must be between 1 and \(largest - pageLength)"
      )
    }
    // The shape's own rules for counts and sizes.
    let shape = try AttentionShape(
      queryHeadCount: keyValueHeadCount,
      keyValueHeadCount: keyValueHeadCount,
      queryLength: 1,
      keyValueLength: capacity,
      headDimension: headDimension,
      valueDimension: valueDimension
    )
    guard let backend = backend as? any CachingBackend else {
      throw AttentionError(.unsupported, "backend \(backend.name) has no key/value cache")
    }
    guard let recipe = precision.streamingRecipe else {
      throw AttentionError(
        .unsupported,
        "precision \(precision.rawValue) has no key/value cache; int8, int4, int4KeyValue, bfloat16 "
          + "and float32 have"
      )
    }
    pageCount = CPUTileSizes.pieceCount(capacity, pageLength)
    self.keyValueHeadCount = keyValueHeadCount
    self.headDimension = headDimension
    self.valueDimension = shape.valueDimension
    self.precision = precision
    self.pageLength = pageLength
    store = try backend.makeCacheStore(
      for: KVCacheLayout(
        keyValueHeadCount: keyValueHeadCount,
        headDimension: headDimension,
        valueDimension: shape.valueDimension,
        recipe: recipe,
        capacity: pageCount * pageLength
      )
    )
    pages = Mutex(
      Pages(
        owners: [Int32](repeating: 0, count: pageCount),
        free: (0..<Int32(pageCount)).reversed()
      )
    )
  }

  /// Pages that no sequence has.
  public var freePageCount: Int { pages.withLock { $0.free.count } }

  /// Tokens that there is room for.
  public var capacity: Int { pageCount * pageLength }

  /// Bytes that one token's key and value take per key/value head, scales included.
  public var bytesPerToken: Double { store.bytesPerToken }

  /// Name of the backend.
  public var backendName: String { store.backendName }
  /// Name of the instruction set, or of what stands for it.
  public var instructionSet: String { store.instructionSet }
  /// Threads that share the work of a call.
  public var threadCount: Int { store.threadCount }

  // MARK: Pages

  /// Takes pages for a sequence: all or none.
  func takePages(_ count: Int) throws(AttentionError) -> [Int32] {
    try pages.withLock { pages throws(AttentionError) in
      guard count <= pages.free.count else {
        throw AttentionError(
          .outOfPages,
          "\(count) pages of \(pageLength) tokens are needed, but \(pages.free.count) of "
            + "\(pageCount) are free"
        )
      }
      let taken = Array(pages.free.suffix(count).reversed())
      pages.free.removeLast(count)
      for page in taken { pages.owners[Int(page)] = 1 }
      return taken
    }
  }

  func isShared(_ page: Int32) -> Bool { pages.withLock { $0.owners[Int(page)] > 1 } }

  func share(_ shared: ArraySlice<Int32>) {
    pages.withLock { pages in
      for page in shared { pages.owners[Int(page)] += 1 }
    }
  }

  func release(_ released: ArraySlice<Int32>) {
    pages.withLock { pages in
      for page in released.reversed() {
        pages.owners[Int(page)] -= 1
        if pages.owners[Int(page)] == 0 { pages.free.append(page) }
      }
    }
  }

  /// Copies the pages' units; both have `pageLength / 64` of them.
  func copyPage(from source: Int32, to target: Int32) {
    let units = Int32(pageLength / KVCacheLayout.unitLength)
    for unit in 0..<units { store.copyUnit(from: source * units + unit, to: target * units + unit) }
  }
}

extension Precision {
  /// The recipe as caches have it; nil where there is none.
  ///
  /// Nothing in it depends on tokens that are still to come: queries are not centred, and what keys
  /// and values need (the mean of the keys, the unit of the values' scales) comes from the first
  /// tile. n is an integer for 4-bit values too: a byte per token, and the row sum one integer
  /// product.
  package var streamingRecipe: QuantizationRecipe? {
    var recipe = recipe
    switch self {
    case .int8, .int4, .int4KeyValue:
      recipe.queryCentering = .none
      recipe.valueScale = .foldedReciprocal
    case .bfloat16, .float32: break
    case .int8Paper, .int8QueryKey, .int8QueryKeyPaper, .int4QueryKey, .float8, .float16: return nil
    }
    return recipe
  }
}
