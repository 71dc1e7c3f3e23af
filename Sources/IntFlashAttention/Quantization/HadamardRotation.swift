/// Multiplication by a Hadamard matrix: spreads an outlier channel over all channels.
///
/// H[a, b] = (−1)^popcount(a & b) / √p on equal diagonal blocks of p × p, p the largest power of two
/// that divides the dimension: the whole of 64 or 128, blocks of 32 for 96, of 4 for 20; an odd
/// dimension is left as it is. H is symmetric and its own inverse, so (q H) · (k H) = q · k.
///
/// The transform without the factor 1/√p is what kernels compute: butterflies of strides 1, 2, 4, …
/// p/2 in this order. The factor goes into scales, where it costs nothing.
public struct HadamardRotation: Hashable, Sendable {
  /// Length of the rows.
  public let dimension: Int

  /// A rotation of rows of this length.
  ///
  /// - Precondition: `dimension` is positive.
  public init(dimension: Int) {
    precondition(dimension > 0, "a row has at least one channel")
    self.dimension = dimension
  }

  /// Size p of the diagonal blocks.
  public var blockLength: Int { dimension & -dimension }

  /// Rotates consecutive rows in place; applying it twice gives the rows back, to rounding.
  ///
  /// - Precondition: the count of `rows` is a multiple of `dimension`.
  /// - Complexity: O(log p) additions per element.
  public func apply(_ rows: inout [Float]) {
    applyUnnormalized(&rows)
    let factor = 1 / Float(blockLength).squareRoot()
    for index in rows.indices { rows[index] *= factor }
  }

  /// √p times the rotation.
  package func applyUnnormalized(_ rows: inout [Float]) {
    precondition(rows.count.isMultiple(of: dimension), "whole rows")
    let count = rows.count
    var span = rows.mutableSpan
    var stride = 1
    while stride < blockLength {
      // Rows and blocks are multiples of 2 · stride, so the rows can be taken as one long row.
      var start = 0
      while start < count {
        for index in start..<start + stride {
          let a = span[index]
          let b = span[index + stride]
          span[index] = a + b
          span[index + stride] = a - b
        }
        start += 2 * stride
      }
      stride *= 2
    }
  }
}
