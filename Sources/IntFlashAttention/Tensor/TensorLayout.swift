/// The order in which attention's four dimensions are stored.
public enum TensorLayout: String, Sendable, Hashable, CaseIterable {
  /// `[batch, heads, tokens, dimension]`.
  case batchHeadsTokens = "bhnd"
  /// `[batch, tokens, heads, dimension]`.
  case batchTokensHeads = "bnhd"
}

/// Shape arithmetic shared by owners and views.
package enum TensorGeometry {
  /// Row-major strides.
  ///
  /// For `.int4` a row is rounded up to whole bytes.
  package static func contiguousStrides(_ shape: [Int], _ type: ElementType) -> [Int] {
    var strides = [Int](repeating: 1, count: shape.count)
    var step = shape.last ?? 1
    if type == .int4 { step += step & 1 }
    for axis in stride(from: shape.count - 2, through: 0, by: -1) {
      strides[axis] = step
      step *= shape[axis]
    }
    return strides
  }

  /// The shape of a range of one dimension, and how many elements after the first it begins.
  ///
  /// - Precondition: the dimension exists and has the range.
  package static func part(
    _ range: Range<Int>,
    ofDimension axis: Int,
    _ shape: [Int],
    _ strides: [Int]
  ) -> (shape: [Int], offset: Int) {
    precondition(range.lowerBound >= 0 && range.upperBound <= shape[axis], "range inside the shape")
    var sizes = shape
    sizes[axis] = range.count
    return (sizes, range.lowerBound * strides[axis])
  }

  /// Strides without those that are never stepped along, which may be any numbers.
  ///
  /// They are 0 along dimensions of one element, and row-major where there are no elements or none are
  /// given.
  package static func usedStrides(
    _ shape: [Int],
    _ strides: [Int]?,
    _ type: ElementType
  ) -> [Int] {
    guard let strides, strides.count == shape.count, !shape.contains(0) else {
      return contiguousStrides(shape, type)
    }
    return zip(shape, strides).map { $0 == 1 ? 0 : $1 }
  }

  /// Elements that a row-major tensor of this shape takes, padding of `.int4` rows included.
  ///
  /// - Throws: `.invalidArgument` for a negative size or a product beyond `Int`; sizes of 0 count as
  ///   1 there, so that strides cannot overflow either.
  package static func storageCount(
    _ shape: [Int],
    _ type: ElementType
  ) throws(AttentionError) -> Int {
    var count = 1
    for (axis, size) in shape.enumerated() {
      guard size >= 0 else {
        throw AttentionError(
          .invalidArgument,
          "shape \(shape): size \(size) of dimension \(axis) is negative"
        )
      }
      let isLast = axis == shape.count - 1
      let padded = type == .int4 && isLast && size < Int.max ? size + size & 1 : size
      let (product, overflow) = count.multipliedReportingOverflow(by: max(padded, 1))
      guard !overflow else {
        throw AttentionError(.invalidArgument, "shape \(shape): the product of its sizes overflows")
      }
      count = product
    }
    guard type.byteCount(elementCount: count) != nil else {
      throw AttentionError(.invalidArgument, "shape \(shape): its size in bits overflows")
    }
    return shape.contains(0) ? 0 : count
  }

  /// The lowest and highest element offset that a strided shape reaches, or nil where it is empty.
  ///
  /// - Throws: `.invalidArgument` for ranks that differ, negative sizes or an overflow.
  package static func reach(
    shape: [Int],
    strides: [Int],
    offset: Int
  ) throws(AttentionError) -> ClosedRange<Int>? {
    guard strides.count == shape.count else {
      throw AttentionError(
        .invalidArgument,
        "strides \(strides) have \(strides.count) entries, but shape \(shape) has \(shape.count)"
      )
    }
    guard shape.allSatisfy({ $0 >= 0 }) else {
      throw AttentionError(.invalidArgument, "shape \(shape) has a negative size")
    }
    guard shape.allSatisfy({ $0 > 0 }) else { return nil }
    var low = offset
    var high = offset
    for (size, stride) in zip(shape, strides) {
      let (span, overflow) = stride.multipliedReportingOverflow(by: size - 1)
      let (moved, sumOverflow) = (span < 0 ? low : high).addingReportingOverflow(span)
      guard !overflow, !sumOverflow else {
        throw AttentionError(
          .invalidArgument,
          "shape \(shape) with strides \(strides) reaches beyond the range of Int"
        )
      }
      if span < 0 { low = moved } else { high = moved }
    }
    return low...high
  }
}
