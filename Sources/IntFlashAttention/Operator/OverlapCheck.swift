/// Memory rules of an output: no element shares a place with another one or with an input.
enum OverlapCheck {
  /// Refuses two tensors whose memory ranges touch.
  static func requireDisjoint(
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
  /// Taken from the smallest stride up, each must step over all that the smaller ones reach. This
  /// also refuses a few interleavings that do not collide, which no caller has needed.
  static func requireDistinctElements(
    _ view: borrowing TensorView,
    name: String
  ) throws(AttentionError) {
    let dimensions = zip(view.shape, view.strides)
      .filter { $0.0 > 1 }
      .map { (size: $0.0, stride: $0.1.magnitude) }
      .sorted { $0.stride < $1.stride }
    guard view.shape.allSatisfy({ $0 > 0 }) else { return }
    var reach: UInt = 0
    for (size, stride) in dimensions {
      guard stride > reach else {
        throw AttentionError(
          .overlappingOutput,
          "\(name) with shape \(view.shape) and strides \(view.strides) has elements that share a "
            + "place"
        )
      }
      reach += stride * UInt(size - 1)
    }
  }
}
