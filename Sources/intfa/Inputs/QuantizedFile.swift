package import IntFlashAttention
import TensorFiles

/// The names under which a quantised tensor is stored.
enum QuantizedPart: String {
  case codes, scales, means, steps, offsets
  /// Metadata: how it was quantised.
  case recipe
  /// Metadata: sizes in elements, between commas.
  case shape

  /// The key of this part of a tensor.
  func key(_ tensor: String) -> String { "\(tensor).\(rawValue)" }
}

/// How a tensor is quantised, as it is written in metadata and on the command line.
///
/// `int8 token centered rotated`: the type of the codes, what shares a scale, what is done before.
package enum QuantizerText {
  /// The types that codes may have.
  enum CodeType: String, CaseIterable, Sendable {
    case int8, int4, int4Clipped, int4Progressive, float8
  }

  /// Longer blocks than any tensor has tokens; sums of two of them stay far inside `Int`.
  private static let longestBlock = 1 << 40

  /// What shares a scale: `token`, `tensor`, `channel` or `block:N`.
  static func granularity(_ text: String) -> ScaleGranularity? {
    switch text {
    case "token": return .token
    case "tensor": return .tensor
    case "channel": return .channel
    default:
      let parts = text.split(separator: ":", omittingEmptySubsequences: false)
      guard parts.count == 2, parts[0] == "block", let length = Int(parts[1]),
        (1...longestBlock).contains(length)
      else { return nil }
      return .block(length)
    }
  }

  /// The groups of progressive codes: `TOKENSxCHANNELS`.
  static func groups(_ text: String) -> (tokens: Int, channels: Int)? {
    let sides = text.split(separator: "x", omittingEmptySubsequences: false).map { Int($0) }
    guard sides.count == 2, let tokens = sides[0], let channels = sides[1],
      (1...longestBlock).contains(tokens), (1...longestBlock).contains(channels)
    else { return nil }
    return (tokens, channels)
  }

  /// The words of a format: type and what shares a scale or a group.
  static func words(_ format: OperandFormat) -> [String] {
    switch format {
    case .float8(let granularity): [CodeType.float8.rawValue, word(granularity)]
    case .int8(let granularity): [CodeType.int8.rawValue, word(granularity)]
    case .int4(let granularity): [CodeType.int4.rawValue, word(granularity)]
    case .int4Clipped: [CodeType.int4Clipped.rawValue, "token"]
    case .int4Progressive(let tokens, let channels):
      [CodeType.int4Progressive.rawValue, "\(tokens)x\(channels)"]
    case .float32, .bfloat16, .float16: ["none", "none"]
    }
  }

  private static func word(_ granularity: ScaleGranularity) -> String {
    switch granularity {
    case .token: "token"
    case .tensor: "tensor"
    case .channel: "channel"
    case .block(let length): "block:\(length)"
    }
  }

  /// The text of a quantiser.
  package static func text(_ quantizer: Quantizer) -> String {
    let words =
      words(quantizer.format) + (quantizer.centers ? ["centered"] : [])
      + (quantizer.rotates ? ["rotated"] : [])
    return words.joined(separator: " ")
  }

  /// The quantiser of a text, or nil.
  package static func quantizer(_ text: String) -> Quantizer? {
    let words = text.split(separator: " ").map(String.init)
    guard words.count >= 2, let type = CodeType(rawValue: words[0]),
      words.dropFirst(2).allSatisfy({ $0 == "centered" || $0 == "rotated" })
    else { return nil }
    let format: OperandFormat
    switch type {
    case .int4Clipped: format = .int4Clipped
    case .int4Progressive:
      guard let groups = groups(words[1]) else { return nil }
      format = .int4Progressive(tokens: groups.tokens, channels: groups.channels)
    case .int8, .int4, .float8:
      guard let granularity = granularity(words[1]) else { return nil }
      format =
        type == .int8
        ? .int8(granularity) : type == .int4 ? .int4(granularity) : .float8(granularity)
    }
    return Quantizer(
      format,
      centers: words.contains("centered"),
      rotates: words.contains("rotated")
    )
  }
}

extension SafetensorsWriter {
  /// Adds codes, scales and whatever else belongs to them.
  mutating func add(_ name: String, _ tensor: borrowing QuantizedTensor) throws(AttentionError) {
    add(QuantizedPart.codes.key(name), tensor.codes.view)
    for (part, values, type) in [
      (QuantizedPart.scales, tensor.scales, ElementType.float32), (.means, tensor.means, .float32),
      (.steps, tensor.steps, .int8), (.offsets, tensor.offsets, .int8),
    ] as [(QuantizedPart, QuantizedTensor.Part?, ElementType)] {
      guard let values else { continue }
      let stored = try Tensor(values.values, shape: values.shape, elementType: type)
      add(part.key(name), stored.view)
    }
  }
}

extension ActivationFile {
  /// The values that the codes of a tensor stand for, in the shape that was quantised.
  ///
  /// - Throws: `TensorFileError`, or `Failure` with status `badData`.
  func dequantized(_ name: String) throws -> Tensor {
    let recipe = file.metadata[QuantizedPart.recipe.key(name)] ?? ""
    guard let quantizer = QuantizerText.quantizer(recipe) else {
      throw Failure(
        .badData,
        "\(path): metadata \(QuantizedPart.recipe.key(name)) is '\(recipe.prefix(40))'; it must be "
          + "as intfa quantize writes it, for instance 'int8 token rotated'"
      )
    }
    let (original, shape) = try storedShape(name)
    return try blaming(path) {
      let quantized = try QuantizedTensor(
        quantizer: quantizer,
        codes: codes(name, quantizer: quantizer, shape: shape),
        scales: part(.scales, of: name),
        means: quantizer.centers ? part(.means, of: name) : nil,
        steps: quantizer.hasGroups ? part(.steps, of: name) : nil,
        offsets: quantizer.hasGroups ? part(.offsets, of: name) : nil
      )
      let values = try quantized.dequantized()
      guard original != shape else { return values }
      return try Tensor(values.copyFloats(), shape: original)
    }
  }

  /// The shape that was quantised, and the same as [B, H, N, D].
  private func storedShape(_ name: String) throws -> (original: [Int], full: [Int]) {
    let key = QuantizedPart.shape.key(name)
    let text = file.metadata[key] ?? ""
    let sizes = text.split(separator: ",", omittingEmptySubsequences: false).map { Int($0) ?? -1 }
    guard sizes.count == 3 || sizes.count == 4, sizes.allSatisfy({ $0 >= 0 }) else {
      throw Failure(
        .badData,
        "\(path): metadata \(key) is '\(text.prefix(40))'; it must be 3 or 4 sizes between commas"
      )
    }
    return (sizes, sizes.count == 3 ? [1] + sizes : sizes)
  }

  private func codes(_ name: String, quantizer: Quantizer, shape: [Int]) throws -> Tensor {
    let key = QuantizedPart.codes.key(name)
    switch quantizer.format {
    case .int4, .int4Clipped, .int4Progressive:
      return try file.packedInt4Tensor(key, shape: shape)
    case .int8, .float8, .float32, .bfloat16, .float16:
      let codes = try file.tensor(key)
      guard codes.shape == shape else {
        throw Failure(
          .badData,
          "\(path): tensor '\(key)' has shape \(codes.shape), but metadata "
            + "\(QuantizedPart.shape.key(name)) says \(shape)"
        )
      }
      return codes
    }
  }

  private func part(_ part: QuantizedPart, of name: String) throws -> QuantizedTensor.Part {
    let stored = try file.tensor(part.key(name))
    return try QuantizedTensor.Part(stored.copyFloats(), shape: stored.shape)
  }
}

extension Quantizer {
  /// Whether codes come in groups with a step and an offset.
  fileprivate var hasGroups: Bool {
    if case .int4Progressive = format { true } else { false }
  }
}
