import ArgumentParser
import IntFlashAttention
import TensorFiles

/// What a call may have beside query, key and value.
struct AdditionOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "A mask that broadcasts to [batch, query heads, queries, keys]: floats are added to logits, of "
        + "booleans false hides a key. A .npy file, or tensor 'mask' of a .safetensors file.",
      valueName: "file"
    )
  )
  var mask: String?

  @Option(
    help: ArgumentHelp(
      "Attention sinks, a logit per query head in the denominator: a .npy file, or tensor 'sink' of "
        + "a .safetensors file.",
      valueName: "file"
    )
  )
  var sink: String?

  @Flag(help: "Linear biases by distance (ALiBi), with the usual slope of each query head.")
  var alibi = false

  /// Everything that is asked for.
  ///
  /// - Parameter queryHeadCount: for the slopes.
  /// - Returns: what there is.
  /// - Throws: `TensorFileError` or `AttentionError`.
  func additions(queryHeadCount: Int) throws -> Additions {
    try Additions(
      mask: Self.read(mask, "mask"),
      alibiSlopes: slopes(queryHeadCount),
      sinks: Self.read(sink, "sink")
    )
  }

  /// The same, with the tensors `mask` and `sink` of the input unless an option says otherwise.
  func additions(queryHeadCount: Int, input: borrowing SafetensorsFile) throws -> Additions {
    let names = stored(input)
    return try Additions(
      mask: names.contains("mask") ? input.tensor("mask") : Self.read(mask, "mask"),
      alibiSlopes: slopes(queryHeadCount),
      sinks: names.contains("sink") ? input.tensor("sink") : Self.read(sink, "sink")
    )
  }

  /// Tensors of the input that are used.
  func stored(_ input: borrowing SafetensorsFile) -> [String] {
    let names = input.tensorNames
    return [("mask", mask), ("sink", sink)].compactMap { name, option in
      option == nil && names.contains(name) ? name : nil
    }
  }

  private func slopes(_ queryHeadCount: Int) -> [Float] {
    alibi ? Alibi.slopes(headCount: queryHeadCount) : []
  }

  private static func read(_ path: String?, _ name: String) throws -> Tensor {
    guard let path else { return try Additions.nothing() }
    return path.hasSuffix(".npy")
      ? try NpyFile.read(path: path) : try SafetensorsFile(path: path).tensor(name)
  }
}
