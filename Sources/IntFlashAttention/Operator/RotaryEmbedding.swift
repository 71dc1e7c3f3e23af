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
  ///   - rotaryDimension: R, even, 2…256; D for all channels of a head.
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
    guard (2...Self.largestDimension).contains(rotaryDimension), rotaryDimension.isMultiple(of: 2)
    else {
      throw AttentionError(
        .invalidArgument,
        "rotaryDimension is \(rotaryDimension); it must be even, between 2 and "
          + "\(Self.largestDimension)"
      )
    }
    try Self.check(positionCount: positionCount)
    let pairs = rotaryDimension / 2
    let frequencies = (0..<pairs).map { pow(base, -Double(2 * $0) / Double(rotaryDimension)) }
    let cosines = try Tensor(.float32, shape: [positionCount, pairs])
    let sines = try Tensor(.float32, shape: [positionCount, pairs])
    let (cosine, sine) = unsafe (
      cosines.storage.assumingMemoryBound(to: Float.self),
      sines.storage.assumingMemoryBound(to: Float.self)
    )
    for position in 0..<positionCount {
      for pair in 0..<pairs {
        let angle = Double(position) * frequencies[pair]
        let index = position * pairs + pair
        unsafe (cosine[index], sine[index]) = (Float(cos(angle)), Float(sin(angle)))
      }
    }
    self.init(cosines, sines, style)
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
    try Self.check(positionCount: cosines.shape[0])
    guard (1...Self.largestDimension / 2).contains(cosines.shape[1]) else {
      throw AttentionError(
        .invalidArgument,
        "tables have \(cosines.shape[1]) pairs of channels; it must be between 1 and "
          + "\(Self.largestDimension / 2)"
      )
    }
    self.init(try Self.table("cosines", cosines), try Self.table("sines", sines), style)
  }

  private init(_ cosines: consuming Tensor, _ sines: consuming Tensor, _ style: Style) {
    self.style = style
    rotaryDimension = 2 * cosines.shape[1]
    positionCount = cosines.shape[0]
    tables = Tables(cosines: cosines, sines: sines)
  }

  private static let largestDimension = AttentionShape.supportedDimensions.upperBound

  private static func check(positionCount: Int) throws(AttentionError) {
    let largest = AttentionShape.largestLength
    guard positionCount >= 1, positionCount <= largest else {
      throw AttentionError(
        .invalidArgument,
        "positionCount is \(positionCount); it must be between 1 and \(largest)"
      )
    }
  }

  /// A finite copy of [positions, pairs] in float32.
  private static func table(
    _ name: String,
    _ view: borrowing TensorView
  ) throws(AttentionError) -> Tensor {
    let table = try Tensor(.float32, shape: view.shape)
    let values = unsafe table.storage.assumingMemoryBound(to: Float.self)
    let pairs = view.shape[1]
    for index in 0..<view.count {
      let (position, pair) = index.quotientAndRemainder(dividingBy: pairs)
      let value = view.float(atOffset: position * view.strides[0] + pair * view.strides[1])
      guard value.isFinite else {
        throw AttentionError(
          .nonFiniteInput,
          "\(name) at position \(position), pair \(pair) is \(value); tables must be finite"
        )
      }
      unsafe values[index] = value
    }
    return table
  }

  // MARK: Definition

  /// Turns a row: the definition, which kernels match bit for bit.
  private func turn(_ row: UnsafeMutablePointer<Float>, position: Int) {
    let pairs = rotaryDimension / 2
    for pair in 0..<pairs {
      let (first, second) =
        switch style {
        case .interleaved: (2 * pair, 2 * pair + 1)
        case .halfSplit: (pair, pairs + pair)
        }
      let (x, y) = unsafe (row[first], row[second])
      let cosine = unsafe tables.cosine[position * pairs + pair]
      let sine = unsafe tables.sine[position * pairs + pair]
      unsafe row[first] = x * cosine - y * sine
      unsafe row[second] = y * cosine + x * sine
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
    let operand = try rows.operand()
    try check(dimension: operand.shape[3], positions: firstPosition, count: operand.shape[2])
    return try turned(operand, shape: rows.shape) { firstPosition + $0 }
  }

  /// The same for tokens at any positions, one for each.
  package func apply(to rows: TensorView, positions: [Int]) throws(AttentionError) -> Tensor {
    let operand = try rows.operand()
    for position in positions {
      try check(dimension: operand.shape[3], positions: position, count: 1)
    }
    return try turned(operand, shape: rows.shape) { positions[$0] }
  }

  private func turned(
    _ rows: borrowing TensorView,
    shape: [Int],
    _ position: (_ token: Int) -> Int
  ) throws(AttentionError) -> Tensor {
    guard rows.elementType.isFloatingPointOperand else {
      throw AttentionError(
        .unsupportedElementType,
        "rows are \(rows.elementType.rawValue); they must be float32, float16 or bfloat16"
      )
    }
    let result = try Tensor(.float32, shape: shape)
    let values = unsafe result.storage.assumingMemoryBound(to: Float.self)
    let (tokens, dimension, step) = (rows.shape[2], rows.shape[3], rows.strides[3])
    var row = 0
    rows.forEachRow { offset in
      let target = unsafe values + row * dimension
      for channel in 0..<dimension {
        unsafe target[channel] = rows.float(atOffset: offset + channel * step)
      }
      unsafe turn(target, position: position(row % tokens))
      row += 1
    }
    return result
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
