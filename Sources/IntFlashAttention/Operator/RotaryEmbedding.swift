#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// Rotary position embedding: pairs of channels of queries and keys turned by angles that grow with
/// the position of their token.
///
/// With the angle φ of a position and a pair, the pair's channels x, y become
///
///     x · cos φ − y · sin φ,   y · cos φ + x · sin φ
///
/// in float32: each product is rounded, then their sum, without fused multiply-add. A cache or a plan
/// that is given an embedding applies it while it reads the rows, with the same bits as
/// ``apply(to:firstPosition:)`` beforehand, and without its memory.
///
/// R is the number of rotary channels, the first ones of a head; the other D − R stay as they are.
/// Copies share their tables.
public struct RotaryEmbedding: Sendable {
  /// Which channels form pairs.
  public enum Style: String, Sendable, Hashable, CaseIterable {
    /// Channels 2p and 2p + 1: the original paper, GPT-J.
    case interleaved
    /// Channels p and R/2 + p: Llama, GPT-NeoX, Phi, Qwen, and what Transformers calls `rotate_half`.
    case halfSplit
  }

  /// Which channels form pairs.
  public let style: Style
  /// R, even.
  public let rotaryDimension: Int
  /// Positions that the tables have: 0 ..< positionCount.
  public let positionCount: Int
  let tables: Tables

  /// Cosines and sines, [positionCount, R/2] in float32; they live as long as an embedding does.
  @safe
  final class Tables: Sendable {
    private let cosines: Tensor
    private let sines: Tensor

    var cosine: UnsafePointer<Float> {
      unsafe UnsafePointer(cosines.storage.assumingMemoryBound(to: Float.self))
    }
    var sine: UnsafePointer<Float> {
      unsafe UnsafePointer(sines.storage.assumingMemoryBound(to: Float.self))
    }

    init(cosines: consuming Tensor, sines: consuming Tensor) {
      self.cosines = cosines
      self.sines = sines
    }
  }

  /// The usual angles: φ = position · base^(−2p / R), computed in Double and rounded once.
  ///
  /// - Parameters:
  ///   - rotaryDimension: R, even and at least 2; D for all channels of a head.
  ///   - positionCount: positions that are needed: the longest sequence.
  ///   - base: theta of the model, positive.
  ///   - style: which channels form pairs.
  /// - Throws: `AttentionError` with code `.invalidArgument` or `.outOfMemory`.
  public init(
    rotaryDimension: Int,
    positionCount: Int,
    base: Double = 10_000,
    style: Style = .halfSplit
  ) throws(AttentionError) {
    guard base > 0, base.isFinite else {
      throw AttentionError(.invalidArgument, "base is \(base); it must be positive and finite")
    }
    guard rotaryDimension >= 2, rotaryDimension.isMultiple(of: 2) else {
      throw AttentionError(
        .invalidArgument,
        "rotaryDimension is \(rotaryDimension); it must be even and at least 2"
      )
    }
    let pairs = rotaryDimension / 2
    let frequencies = (0..<pairs).map { pow(base, -Double(2 * $0) / Double(rotaryDimension)) }
    try self.init(positionCount: positionCount, pairs: pairs, style: style) { position, pair in
      let angle = Double(position) * frequencies[pair]
      return (Float(cos(angle)), Float(sin(angle)))
    }
  }

  /// Given tables, for angles or magnitudes of another kind.
  ///
  /// - Parameters:
  ///   - cosines: [positions, R/2], float32, float16 or bfloat16; copied.
  ///   - sines: the same for the sines.
  ///   - style: which channels form pairs.
  /// - Throws: `AttentionError` with code `.shapeMismatch`, `.unsupportedElementType`,
  ///   `.invalidArgument`, `.nonFiniteInput` or `.outOfMemory`.
  public init(
    cosines: TensorView,
    sines: TensorView,
    style: Style = .halfSplit
  ) throws(AttentionError) {
    for (name, shape, type) in [
      ("cosines", cosines.shape, cosines.elementType), ("sines", sines.shape, sines.elementType),
    ] {
      guard shape.count == 2, shape == cosines.shape else {
        throw AttentionError(
          .shapeMismatch,
          "\(name) has shape \(shape); both tables must be [positions, pairs of channels]"
        )
      }
      guard type.isFloatingPointOperand else {
        throw AttentionError(
          .unsupportedElementType,
          "\(name) is \(type.rawValue); it must be float32, float16 or bfloat16"
        )
      }
    }
    let (cosineValues, sineValues) = (cosines.copyFloats(), sines.copyFloats())
    let pairs = cosines.shape[1]
    for (name, values) in [("cosines", cosineValues), ("sines", sineValues)] {
      guard let bad = values.firstIndex(where: { !$0.isFinite }) else { continue }
      throw AttentionError(
        .nonFiniteInput,
        "\(name) at position \(bad / pairs), pair \(bad % pairs) is \(values[bad]); tables must be "
          + "finite"
      )
    }
    try self.init(positionCount: cosines.shape[0], pairs: pairs, style: style) { position, pair in
      (cosineValues[position * pairs + pair], sineValues[position * pairs + pair])
    }
  }

  private init(
    positionCount: Int,
    pairs: Int,
    style: Style,
    _ entry: (_ position: Int, _ pair: Int) -> (cosine: Float, sine: Float)
  ) throws(AttentionError) {
    let largest = AttentionShape.largestLength
    guard positionCount >= 1, positionCount <= largest else {
      throw AttentionError(
        .invalidArgument,
        "positionCount is \(positionCount); it must be between 1 and \(largest)"
      )
    }
    guard pairs >= 1 else {
      throw AttentionError(
        .invalidArgument,
        "tables have no pair of channels; they need at least 1"
      )
    }
    let cosines = try Tensor(.float32, shape: [positionCount, pairs])
    let sines = try Tensor(.float32, shape: [positionCount, pairs])
    let (cosine, sine) = unsafe (
      cosines.storage.assumingMemoryBound(to: Float.self),
      sines.storage.assumingMemoryBound(to: Float.self)
    )
    for position in 0..<positionCount {
      for pair in 0..<pairs {
        let index = position * pairs + pair
        unsafe (cosine[index], sine[index]) = entry(position, pair)
      }
    }
    self.style = style
    rotaryDimension = 2 * pairs
    self.positionCount = positionCount
    tables = Tables(cosines: cosines, sines: sines)
  }

  // MARK: Definition

  /// Turns the row that begins at `start`: the definition, which kernels match bit for bit.
  private func turn(_ values: inout [Float], from start: Int, position: Int) {
    let pairs = rotaryDimension / 2
    for pair in 0..<pairs {
      let (first, second) =
        switch style {
        case .interleaved: (start + 2 * pair, start + 2 * pair + 1)
        case .halfSplit: (start + pair, start + pairs + pair)
        }
      let (x, y) = (values[first], values[second])
      let cosine = unsafe tables.cosine[position * pairs + pair]
      let sine = unsafe tables.sine[position * pairs + pair]
      values[first] = x * cosine - y * sine
      values[second] = y * cosine + x * sine
    }
  }

  /// Queries or keys with their positions, as a float32 copy.
  ///
  /// - Parameters:
  ///   - rows: [H, N, D] or [B, H, N, D]; float32, float16 or bfloat16.
  ///   - firstPosition: position of token 0; the others follow.
  /// - Returns: as many rows, turned.
  /// - Throws: `AttentionError` with code `.invalidArgument`, `.shapeMismatch`,
  ///   `.unsupportedElementType` or `.outOfMemory`.
  public func apply(to rows: TensorView, firstPosition: Int = 0) throws(AttentionError) -> Tensor {
    let tokens = try rows.operand().shape[2]
    return try apply(to: rows, positions: (0..<tokens).map { firstPosition + $0 })
  }

  /// The same for tokens at any positions, one for each.
  package func apply(to rows: TensorView, positions: [Int]) throws(AttentionError) -> Tensor {
    let operand = try rows.operand()
    guard operand.elementType.isFloatingPointOperand else {
      throw AttentionError(
        .unsupportedElementType,
        "rows are \(operand.elementType.rawValue); they must be float32, float16 or bfloat16"
      )
    }
    let dimension = operand.shape[3]
    for position in positions { try check(dimension: dimension, positions: position, count: 1) }
    var values = operand.copyFloats()
    for index in 0..<values.count / max(dimension, 1) {
      turn(&values, from: index * dimension, position: positions[index % positions.count])
    }
    return try Tensor(values, shape: rows.shape)
  }

  /// Whether the tables have `count` positions from `first` on, and heads enough channels.
  package func check(
    dimension: Int,
    positions first: Int,
    count: Int
  ) throws(AttentionError) {
    guard rotaryDimension <= dimension else {
      throw AttentionError(
        .shapeMismatch,
        "rotary embedding of \(rotaryDimension) channels, but a head has \(dimension)"
      )
    }
    guard first >= 0, count <= positionCount - min(first, positionCount) else {
      throw AttentionError(
        .invalidArgument,
        "\(count) positions from \(first) on are needed, but the rotary embedding has 0 to "
          + "\(positionCount - 1)"
      )
    }
  }
}
