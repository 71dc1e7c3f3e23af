/// Memory rules of an output: no element shares a place with another one or with an input.
package enum OverlapCheck {
  /// Refuses two tensors whose memory ranges touch.
  package static func requireDisjoint(
    _ output: borrowing TensorView,
    _ outputName: String,
    _ input: borrowing TensorView,
    _ inputName: String
  ) throws(AttentionError) {
    guard let written = output.byteRange, let read = input.byteRange else { return }
    guard !written.overlaps(read) else {
      throw AttentionError(
        .overlappingOutput,
        "\(outputName) shares memory with \(inputName); it needs memory of its own"
      )
    }
  }

  /// Refuses strides that put two elements in one place.
  ///
  /// Each stride must step over all that the smaller ones reach. This also refuses a few
  /// interleavings that do not collide, which no caller has needed.
  package static func requireDistinctElements(
    _ view: borrowing TensorView,
    name: String
  ) throws(AttentionError) {
    try requireDistinctElements(view.shape, view.strides, name: name)
  }

  /// The same of a tensor that the process may not read.
  package static func requireDistinctElements(
    _ shape: [Int],
    _ strides: [Int],
    name: String
  ) throws(AttentionError) {
    guard shape.allSatisfy({ $0 > 0 }) else { return }
    // Without a sorted copy: every call comes here, and ranks are small.
    for axis in shape.indices where shape[axis] > 1 {
      let stride = strides[axis].magnitude
      var reach: UInt = 0
      for other in shape.indices where other != axis {
        let smaller = strides[other].magnitude
        guard smaller < stride || (smaller == stride && other < axis) else { continue }
        reach += smaller * UInt(shape[other] - 1)
      }
      guard stride > reach else {
        throw AttentionError(
          .overlappingOutput,
          "\(name) with shape \(shape) and strides \(strides) has elements that share a place"
        )
      }
    }
  }
}
