import IntFlashAttention
import TensorFiles

/// A `.safetensors` file with queries, keys and values, plain or as `intfa quantize` writes them.
struct ActivationFile: ~Copyable {
  let file: SafetensorsFile

  /// Opens a file and checks its header.
  init(path: String) throws(TensorFileError) {
    file = try SafetensorsFile(path: path)
  }

  /// Takes a file that is in memory.
  init(bytes: Span<UInt8>, name: String) throws(TensorFileError) {
    file = try SafetensorsFile(bytes: bytes, name: name)
  }

  /// The file, as it was named.
  var path: String { file.path }

  /// The tensors `q`, `k` and `v`, the quantised ones as the values that their codes stand for.
  ///
  /// - Parameter layout: the order of dimensions of plain tensors; codes are always heads first.
  /// - Returns: the three, not yet checked against each other.
  /// - Throws: `TensorFileError`, or `Failure` with status `badData`.
  func operands(_ layout: TensorLayout = .batchHeadsTokens) throws -> Operands {
    let isQuantized = ["q", "k", "v"].contains { holdsCodes($0) }
    if isQuantized && layout != .batchHeadsTokens {
      throw Failure(
        .usage,
        "--layout \(layout.rawValue): \(path) has quantised tensors, which are always "
          + "\(TensorLayout.batchHeadsTokens.rawValue)"
      )
    }
    return Operands(
      query: try tensor("q"),
      key: try tensor("k"),
      value: try tensor("v"),
      layout: layout
    )
  }

  /// A tensor as float32, float16 or bfloat16.
  private func tensor(_ name: String) throws -> Tensor {
    holdsCodes(name) ? try dequantized(name) : try file.tensor(name)
  }

  /// The tensor `o` as float32, row-major [B, Hq, Nq, Dv], or nil where there is none.
  ///
  /// - Throws: `Failure` with status `badData` where its shape is not that of the output.
  func storedOutput(_ shape: AttentionShape) throws -> [Float]? {
    guard file.tensorNames.contains("o") else { return nil }
    let output = try file.tensor("o")
    let full = output.shape.count == 3 ? [1] + output.shape : output.shape
    guard full == shape.outputShape else {
      throw Failure(
        .badData,
        "\(path): tensor 'o' has shape \(output.shape), but the output of q, k and v has "
          + "\(shape.outputShape)"
      )
    }
    return output.copyFloats()
  }

  /// Whether `intfa quantize` wrote this tensor.
  private func holdsCodes(_ name: String) -> Bool {
    file.metadata[QuantizedPart.recipe.key(name)] != nil
  }

  // MARK: Options

  /// The metadata `scale` and `causal`.
  ///
  /// - Throws: `Failure` with status `badData` for a text that is no such value.
  func storedOptions() throws -> StoredOptions {
    var options = StoredOptions()
    if let text = file.metadata["scale"] {
      guard let scale = Float(text), scale.isFinite else {
        throw Failure(
          .badData,
          "\(path): metadata scale is '\(text.prefix(40))'; it must be a number"
        )
      }
      options.softmaxScale = scale
    }
    if let text = file.metadata["causal"] {
      switch text {
      case "1", "true", "True": options.mask = .causal
      case "0", "false", "False": options.mask = .full
      default:
        throw Failure(
          .badData,
          "\(path): metadata causal is '\(text.prefix(40))'; it must be 0 or 1"
        )
      }
    }
    return options
  }
}

/// What a file says about how it is meant to be used.
struct StoredOptions {
  var softmaxScale: Float?
  var mask: AttentionMask?

  /// The options of a call that has nothing to say about them.
  var options: AttentionOptions {
    AttentionOptions(softmaxScale: softmaxScale, mask: mask ?? .full)
  }

  /// The options of a call: what the command line says, else what the file says.
  func merged(_ math: MathOptions, _ mask: MaskOptions) -> AttentionOptions {
    AttentionOptions(
      softmaxScale: math.softmaxScale ?? softmaxScale,
      softcap: math.softcap,
      mask: mask.explicit ?? self.mask ?? .full
    )
  }

  /// What `merged` takes from the file, in words, or nil.
  func used(_ math: MathOptions, _ mask: MaskOptions) -> String? {
    var parts: [String] = []
    if math.softmaxScale == nil, let softmaxScale { parts.append("scale \(softmaxScale)") }
    if mask.explicit == nil, let mask = self.mask { parts.append("mask \(mask.name)") }
    return parts.isEmpty ? nil : parts.joined(separator: " and ")
  }
}
