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
/// f_j = unit / n_j with n_j at most 127, so f_j is never below unit / 127, an eighth of the mean
/// scale. n_j is an integer where the row sum shall be an integer product.
package struct FoldedValueScales: Sendable {
  /// The scale of n = 1, for values rotated without normalisation.
  package let unit: Float
  /// n_j per token.
  package let reciprocals: [Float]
  /// Whether every n_j is an integer in 1…127.
  package let isInteger: Bool
  /// Whether one token exceeds `outlierLimit` times the mean.
  ///
  /// It takes all codes of P of its tile, and the mass of its neighbours would be missing from a row
  /// sum over codes. Then n_j is real, the row sum takes P before it is rounded, tiles are short, so
  /// that it has few neighbours, and the mean leaves out such tokens.
  package let hasOutlier: Bool

  /// The mean of max|v| goes down by this factor to become the unit: the scale of n = 127 is then an
  /// eighth of the mean scale.
  package static let floorDivisor: Float = 8
  /// The largest of a head is 1.7 to 2.5 times the mean in language models and below 2 in normal data.
  package static let outlierLimit: Float = 4
  /// Keys per tile of a head with an outlier.
  package static let outlierTileLength = 64

  /// From the largest magnitude of each rotated value row.
  ///
  /// - Parameters:
  ///   - maxima: max|v| per token.
  ///   - integers: whether n_j shall be integers where there is no outlier.
  package init(maxima: [Float], integers: Bool) {
    let maxima = maxima.map { max($0, HeadCodes.smallestMaximum) }
    var mean = Self.mean(maxima)
    let hasOutlier = maxima.contains { $0 > Self.outlierLimit * mean }
    if hasOutlier {
      let limit = Self.outlierLimit * mean
      mean = Self.mean(maxima) { $0 <= limit }
    }
    let unit = mean / Self.floorDivisor
    self.unit = unit
    self.hasOutlier = hasOutlier
    isInteger = integers && !hasOutlier
    let isInteger = isInteger
    reciprocals = maxima.map { value in
      let ratio = 127 * unit / value
      return isInteger ? min(max(ratio.rounded(.down), 1), 127) : min(ratio, 127)
    }
  }

  /// The mean of those to be counted: block sums in order, as for the means of rows.
  private static func mean(_ maxima: [Float], where counts: (Float) -> Bool = { _ in true })
    -> Float
  {
    var sum: Float = 0
    var count = 0
    for start in stride(from: 0, to: maxima.count, by: HeadRows.sumBlock) {
      var block: Float = 0
      for value in maxima[start..<min(start + HeadRows.sumBlock, maxima.count)] where counts(value)
      {
        block += value
        count += 1
      }
      sum += block
    }
    return max(sum / Float(max(count, 1)), HeadCodes.smallestMaximum)
  }

  /// What a row is multiplied by before rounding: n_j / unit.
  package func multiplier(_ index: Int) -> Float { reciprocals[index] / unit }

  /// log2 of n_j, rounded from double precision so that platforms agree.
  package static func logarithm(_ reciprocal: Float) -> Float {
    // Almost every n is one of these integers.
    if reciprocal >= 1, reciprocal == reciprocal.rounded() {
      return integerLogarithms[Int(reciprocal)]
    }
    return Float(log2(Double(reciprocal)))
  }

  private static let integerLogarithms = (0...127).map { Float(log2(Double(max($0, 1)))) }
}
