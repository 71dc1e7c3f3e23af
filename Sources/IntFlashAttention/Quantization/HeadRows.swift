/// The rows of one head as float32: what the plain Swift side of quantisation works on.
///
/// Every function here is the definition that the kernels must match bit for bit, so the order of
/// each sum is part of it.
package struct HeadRows: Sendable {
  package let count: Int
  package let dimension: Int
  /// Row-major.
  package var values: [Float]

  package init(count: Int, dimension: Int, values: [Float]) {
    self.count = count
    self.dimension = dimension
    self.values = values
  }

  /// A copy of one head of a `[B, H, N, D]` view.
  package init(_ view: borrowing TensorView, batch: Int, head: Int) {
    let (rows, columns) = (view.shape[2], view.shape[3])
    var values: [Float] = []
    values.reserveCapacity(rows * columns)
    let start = batch * view.strides[0] + head * view.strides[1]
    for row in 0..<rows {
      for column in 0..<columns {
        values.append(
          view.float(atOffset: start + row * view.strides[2] + column * view.strides[3])
        )
      }
    }
    self.init(count: rows, dimension: columns, values: values)
  }

  package func row(_ index: Int) -> ArraySlice<Float> {
    values[index * dimension..<(index + 1) * dimension]
  }

  /// Rows that are summed one after the other before block sums are added in order.
  package static let sumBlock = 256

  /// The mean of each channel, or zeros where there is no row.
  package func mean() -> [Float] {
    mean(ofRows: 0..<count)
  }

  package func mean(ofRows rows: Range<Int>) -> [Float] {
    var total = [Float](repeating: 0, count: dimension)
    guard !rows.isEmpty else { return total }
    for blockStart in stride(from: rows.lowerBound, to: rows.upperBound, by: Self.sumBlock) {
      var block = Array(row(blockStart))
      for index in blockStart + 1..<min(blockStart + Self.sumBlock, rows.upperBound) {
        for (channel, value) in row(index).enumerated() { block[channel] += value }
      }
      for channel in 0..<dimension {
        total[channel] =
          blockStart == rows.lowerBound ? block[channel] : total[channel] + block[channel]
      }
    }
    return total.map { $0 / Float(rows.count) }
  }

  package mutating func subtract(_ mean: [Float], fromRows rows: Range<Int>? = nil) {
    for row in rows ?? 0..<count {
      for channel in 0..<dimension { values[row * dimension + channel] -= mean[channel] }
    }
  }

  /// Rotates every row without normalisation; see ``HadamardRotation``.
  package mutating func rotate() {
    HadamardRotation(dimension: dimension).applyUnnormalized(&values)
  }

  /// The largest magnitude of each row.
  package func rowMaxima() -> [Float] {
    (0..<count).map { index in row(index).reduce(0) { max($0, $1.magnitude) } }
  }

  package func largest() -> Float {
    values.reduce(0) { max($0, $1.magnitude) }
  }

  /// The inner product of two rows: sixteen partial sums, added pairwise.
  package static func dot(_ a: [Float], _ b: ArraySlice<Float>) -> Float {
    var lanes = [Float](repeating: 0, count: 16)
    for (index, (x, y)) in zip(a, b).enumerated() { lanes[index % 16] += x * y }
    for half in [8, 4, 2, 1] {
      for lane in 0..<half { lanes[lane] += lanes[lane + half] }
    }
    return lanes[0]
  }
}
