public import IntFlashAttention
public import Testing

/// Counts and sizes of one batch, as an argument of a test.
public struct CallSizes: Sendable, CustomTestStringConvertible {
  let heads: (query: Int, keyValue: Int)
  let lengths: (query: Int, key: Int)
  let dimensions: (head: Int, value: Int)

  /// Hq and Hkv, Nq and Nk, D and Dv.
  public init(
    heads: (query: Int, keyValue: Int),
    lengths: (query: Int, key: Int),
    dimensions: (head: Int, value: Int)
  ) {
    self.heads = heads
    self.lengths = lengths
    self.dimensions = dimensions
  }

  /// As it stands in reports.
  public var testDescription: String {
    "heads \(heads.query)/\(heads.keyValue), lengths \(lengths.query)/\(lengths.key), dimensions "
      + "\(dimensions.head)/\(dimensions.value)"
  }

  /// As the library has them.
  public var shape: AttentionShape {
    get throws {
      try AttentionShape(
        queryHeadCount: heads.query,
        keyValueHeadCount: heads.keyValue,
        queryLength: lengths.query,
        keyValueLength: lengths.key,
        headDimension: dimensions.head,
        valueDimension: dimensions.value
      )
    }
  }
}
