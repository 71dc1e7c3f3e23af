/// The counts and sizes of one attention call.
///
/// The letters used in all documentation: B batches, Hq query heads, Hkv key/value heads, Nq query
/// tokens, Nk key/value tokens, D head dimension, Dv value dimension. Query head h reads key/value
/// head h / (Hq / Hkv), rounded down: grouped-query attention, of which multi-query (Hkv = 1) and
/// multi-head (Hkv = Hq) are the ends.
public struct AttentionShape: Hashable, Sendable {
  /// B, at least 0.
  public let batchCount: Int
  /// Hq, a positive multiple of Hkv.
  public let queryHeadCount: Int
  /// Hkv, at least 1.
  public let keyValueHeadCount: Int
  /// Nq, at least 0.
  public let queryLength: Int
  /// Nk, at least 0.
  ///
  /// Without keys every row of the output is zero.
  public let keyValueLength: Int
  /// D, 1…256.
  public let headDimension: Int
  /// Dv, 1…256.
  public let valueDimension: Int

  /// The dimensions that every backend takes.
  public static let supportedDimensions = 1...256

  /// The longest sequence: kernels count positions inside a call in 32 bits.
  public static let largestLength = Int(Int32.max)

  /// Checks and stores the sizes.
  ///
  /// - Parameters:
  ///   - batchCount: B.
  ///   - queryHeadCount: Hq.
  ///   - keyValueHeadCount: Hkv.
  ///   - queryLength: Nq.
  ///   - keyValueLength: Nk.
  ///   - headDimension: D.
  ///   - valueDimension: Dv; nil is D.
  /// - Throws: `AttentionError` with code `.invalidArgument` where a size is outside its range or a
  ///   product of sizes overflows, `.shapeMismatch` where Hq is no multiple of Hkv.
  public init(
    batchCount: Int = 1,
    queryHeadCount: Int,
    keyValueHeadCount: Int,
    queryLength: Int,
    keyValueLength: Int,
    headDimension: Int,
    valueDimension: Int? = nil
  ) throws(AttentionError) {
    let valueDimension = valueDimension ?? headDimension
    for (name, value) in [
      ("batchCount", batchCount), ("queryLength", queryLength), ("keyValueLength", keyValueLength),
    ] where value < 0 {
      throw AttentionError(.invalidArgument, "\(name) is \(value); it must be at least 0")
    }
    for (name, value) in [
      ("queryHeadCount", queryHeadCount), ("keyValueHeadCount", keyValueHeadCount),
    ] where value < 1 {
      throw AttentionError(.invalidArgument, "\(name) is \(value); it must be at least 1")
    }
    for (name, value) in [("headDimension", headDimension), ("valueDimension", valueDimension)]
    where !Self.supportedDimensions.contains(value) {
      throw AttentionError(
        .invalidArgument,
        "\(name) is \(value); it must be between 1 and \(Self.supportedDimensions.upperBound)"
      )
    }
    for (name, value) in [("queryLength", queryLength), ("keyValueLength", keyValueLength)]
    where value > Self.largestLength {
      throw AttentionError(
        .invalidArgument,
        "\(name) is \(value); it must be at most \(Self.largestLength)"
      )
    }
    guard queryHeadCount.isMultiple(of: keyValueHeadCount) else {
      throw AttentionError(
        .shapeMismatch,
        "\(queryHeadCount) query heads cannot share \(keyValueHeadCount) key/value heads: "
          + "the first must be a multiple of the second"
      )
    }
    // Byte counts and work item counts stay well inside Int when these do.
    let largestDimension = max(headDimension, valueDimension)
    let lengths = [queryLength, keyValueLength]
    for length in lengths {
      var product = 64 * largestDimension
      for factor in [batchCount, queryHeadCount, max(length, 1)] {
        let (next, overflow) = product.multipliedReportingOverflow(by: max(factor, 1))
        guard !overflow else {
          throw AttentionError(
            .invalidArgument,
            "batchCount \(batchCount) · heads \(queryHeadCount) · length \(length) · dimension "
              + "\(largestDimension) overflows"
          )
        }
        product = next
      }
    }
    self.batchCount = batchCount
    self.queryHeadCount = queryHeadCount
    self.keyValueHeadCount = keyValueHeadCount
    self.queryLength = queryLength
    self.keyValueLength = keyValueLength
    self.headDimension = headDimension
    self.valueDimension = valueDimension
  }

  /// Query heads that share one key/value head.
  public var groupSize: Int { queryHeadCount / keyValueHeadCount }

  /// Whether query heads share key/value heads.
  public var isGroupedQuery: Bool { groupSize > 1 }

  /// `[B, Hq, Nq, D]`.
  public var queryShape: [Int] { [batchCount, queryHeadCount, queryLength, headDimension] }
  /// `[B, Hkv, Nk, D]`.
  public var keyShape: [Int] { [batchCount, keyValueHeadCount, keyValueLength, headDimension] }
  /// `[B, Hkv, Nk, Dv]`.
  public var valueShape: [Int] { [batchCount, keyValueHeadCount, keyValueLength, valueDimension] }
  /// `[B, Hq, Nq, Dv]`.
  public var outputShape: [Int] { [batchCount, queryHeadCount, queryLength, valueDimension] }
  /// `[B, Hq, Nq]`.
  public var logSumExpShape: [Int] { [batchCount, queryHeadCount, queryLength] }
}
