#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// Per-token scales of the values that ride on the logits, and the rule that selects the row sum.
///
/// With f_j the scale of value row j, Σ p_j v_j = Σ (p_j f_j) v8_j, and adding log2 f_j to the logit
/// makes p_j f_j what the exponential yields. The denominator then needs Σ (p_j f_j) / f_j.
///
/// f_j = unit / n_j with n_j in 1…127, so f_j is never below unit / 127, an eighth of the mean scale.
package struct FoldedValueScales: Sendable {
  /// The scale of n = 1, for values rotated without normalisation.
  package let unit: Float
  /// n_j per token.
  package let reciprocals: [Float]
  /// Whether every n_j is an integer, so that the row sum is an integer product over codes of P.
  ///
  /// False where one token exceeds 127 times the unit: it would push its neighbours in the tile to
  /// code 0 and their mass out of such a sum, so the row sum takes P before rounding.
  package let isInteger: Bool

  /// The mean of max|v| goes down by this factor to become the unit: the scale of n = 127 is then an
  /// eighth of the mean scale.
  package static let floorDivisor: Float = 8

  /// From the largest magnitude of each rotated value row.
  package init(maxima: [Float]) {
    var sum: Float = 0
    var largest = HeadCodes.smallestMaximum
    for blockStart in stride(from: 0, to: maxima.count, by: HeadRows.sumBlock) {
      var block: Float = 0
      for index in blockStart..<min(blockStart + HeadRows.sumBlock, maxima.count) {
        let value = max(maxima[index], HeadCodes.smallestMaximum)
        block += value
        largest = max(largest, value)
      }
      sum += block
    }
    let unit = max(sum / Float(max(maxima.count, 1)), HeadCodes.smallestMaximum) / Self.floorDivisor
    let isInteger = largest <= 32 * unit
    self.unit = unit
    self.isInteger = isInteger
    reciprocals = maxima.map { value in
      let ratio = 127 * unit / max(value, HeadCodes.smallestMaximum)
      return isInteger ? min(max(ratio.rounded(.down), 1), 127) : min(ratio, 127)
    }
  }

  /// What a row is multiplied by before rounding: n_j / unit.
  package func multiplier(_ index: Int) -> Float { reciprocals[index] / unit }

  /// log2 of n_j, rounded from double precision so that platforms agree.
  package static func logarithm(_ reciprocal: Float) -> Float { Float(log2(Double(reciprocal))) }
}
