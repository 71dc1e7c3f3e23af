/// How far a tensor is from a reference, over all elements.
public struct AccuracyReport: Hashable, Sendable {
  /// Σ|a − b| / Σ|b|: what gates are stated in.
  ///
  /// NaN or infinity in `a` makes it NaN or infinite.
  public let relativeL1: Double
  /// The cosine of the angle between the flattened tensors.
  public let cosine: Double
  /// √ mean (a − b)².
  public let rootMeanSquare: Double
  /// mean |a − b| / (|b| + 10⁻⁵), element by element.
  ///
  /// INT-FlashAttention's measure; a few elements near zero carry most of it.
  public let meanRelative: Double
  /// The largest |a − b|.
  public let largest: Double

  /// Compares `values` with `reference`, element by element.
  ///
  /// An empty tensor, and one equal to a reference of zeros, has relative error 0 and cosine 1.
  ///
  /// - Precondition: both have the same count.
  public init(_ values: [Float], against reference: [Float]) {
    precondition(values.count == reference.count, "as many values as reference values")
    var (difference, norm, squares, relative, worst) = (0.0, 0.0, 0.0, 0.0, 0.0)
    var (product, left, right) = (0.0, 0.0, 0.0)
    for (a, b) in zip(values.lazy.map(Double.init), reference.lazy.map(Double.init)) {
      let error = (a - b).magnitude
      difference += error
      norm += b.magnitude
      squares += error * error
      relative += error / (b.magnitude + 1e-5)
      // A comparison with NaN is false, which would hide it.
      worst = error > worst || error.isNaN ? error : worst
      product += a * b
      left += a * a
      right += b * b
    }
    let count = Double(max(values.count, 1))
    relativeL1 = difference == 0 ? 0 : difference / norm
    cosine = left == right && product == left ? 1 : product / (left * right).squareRoot()
    rootMeanSquare = (squares / count).squareRoot()
    meanRelative = relative / count
    largest = worst
  }

  /// Compares two tensors of the same shape.
  ///
  /// - Throws: `AttentionError` with code `.shapeMismatch`.
  public init(
    _ tensor: borrowing TensorView,
    against reference: borrowing TensorView
  ) throws(AttentionError) {
    guard tensor.shape == reference.shape else {
      throw AttentionError(
        .shapeMismatch,
        "shape \(tensor.shape) cannot be compared with \(reference.shape)"
      )
    }
    self.init(tensor.copyFloats(), against: reference.copyFloats())
  }
}
