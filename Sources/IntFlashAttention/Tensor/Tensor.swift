#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// An N-dimensional tensor that owns its memory: row-major, aligned to 64 bytes.
///
/// Not copyable, so that no copy happens unnamed: pass `view` or `mutableView`, or call `copy()`.
@safe
public struct Tensor: ~Copyable, @unchecked Sendable {
  // Sendable although it holds a pointer: it is the only owner, and writing needs exclusive access.
  package let storage: UnsafeMutableRawPointer
  /// How elements are stored.
  public let elementType: ElementType
  /// Sizes, outermost first.
  public let shape: [Int]
  /// Bytes of storage, without the padding of the last cache line.
  public let byteCount: Int

  /// A tensor of zeros.
  ///
  /// - Throws: `AttentionError` with code `.invalidArgument` for a negative size or a product that
  ///   overflows, `.outOfMemory` where the memory cannot be had.
  public init(_ elementType: ElementType, shape: [Int]) throws(AttentionError) {
    let count = try TensorGeometry.storageCount(shape, elementType)
    guard let bytes = elementType.byteCount(elementCount: count) else {
      throw AttentionError(.invalidArgument, "shape \(shape): its size in bytes overflows")
    }
    let storage = unsafe AlignedMemory.allocate(byteCount: bytes)
    guard let storage = unsafe storage else {
      throw AttentionError(.outOfMemory, "no memory for shape \(shape), \(bytes) bytes")
    }
    unsafe self.storage = storage
    self.elementType = elementType
    self.shape = shape
    self.byteCount = bytes
  }

  /// A tensor with these values in row-major order, rounded to the element type.
  ///
  /// - Throws: `AttentionError` with code `.shapeMismatch` unless `values` has as many entries as
  ///   the shape has elements; otherwise as ``init(_:shape:)``.
  public init(
    _ values: [Float],
    shape: [Int],
    elementType: ElementType = .float32
  ) throws(AttentionError) {
    let count = try TensorGeometry.storageCount(shape, .int8)
    guard values.count == count else {
      throw AttentionError(
        .shapeMismatch,
        "\(values.count) values do not fill shape \(shape), which has \(count) elements"
      )
    }
    try self.init(elementType, shape: shape)
    let columns = shape.last ?? 1
    var index = 0
    let target = mutableView
    target.view.forEachRow { offset in
      for column in 0..<columns {
        target.store(values[index], atOffset: offset + column)
        index += 1
      }
    }
  }

  deinit {
    unsafe free(storage)
  }

  /// Row-major strides, in elements.
  public var strides: [Int] { TensorGeometry.contiguousStrides(shape, elementType) }

  /// Number of elements.
  public var count: Int { shape.reduce(1, *) }

  /// The elements, to read.
  public var view: TensorView {
    @_lifetime(borrow self)
    get {
      unsafe _overrideLifetime(
        TensorView(
          unsafeBase: UnsafeRawPointer(storage),
          elementType: elementType,
          shape: shape,
          strides: strides
        ),
        borrowing: self
      )
    }
  }

  /// The elements, to write.
  public var mutableView: MutableTensorView {
    @_lifetime(&self)
    mutating get {
      unsafe _overrideLifetime(
        MutableTensorView(
          unsafeBase: storage,
          elementType: elementType,
          shape: shape,
          strides: strides
        ),
        mutating: &self
      )
    }
  }

  /// The storage as bytes: `.int4` packed, everything little-endian.
  public var bytes: RawSpan {
    @_lifetime(borrow self)
    get {
      let span = unsafe RawSpan(_unsafeStart: UnsafeRawPointer(storage), byteCount: byteCount)
      return unsafe _overrideLifetime(span, borrowing: self)
    }
  }

  /// The storage as bytes, to write.
  public var mutableBytes: MutableRawSpan {
    @_lifetime(&self)
    mutating get {
      let span = unsafe MutableRawSpan(_unsafeStart: storage, byteCount: byteCount)
      return unsafe _overrideLifetime(span, mutating: &self)
    }
  }

  /// Every element as float32 in row-major order: a copy.
  public func copyFloats() -> [Float] { view.copyFloats() }

  /// A second tensor with the same elements.
  ///
  /// - Throws: `AttentionError` with code `.outOfMemory`.
  public func copy() throws(AttentionError) -> Tensor {
    let result = try Tensor(elementType, shape: shape)
    unsafe result.storage.copyMemory(from: storage, byteCount: byteCount)
    return result
  }
}

/// The one place where memory comes from: aligned to a cache line, never freed by itself.
package enum AlignedMemory {
  /// Memory for `free`, or nil.
  ///
  /// At least one cache line, whole lines.
  package static func allocate(byteCount: Int, zeroed: Bool = true) -> UnsafeMutableRawPointer? {
    guard byteCount <= Int.max - 63 else { return nil }
    var pointer: UnsafeMutableRawPointer?
    let padded = (max(byteCount, 1) + 63) & ~63
    guard unsafe posix_memalign(&pointer, 64, padded) == 0, let pointer = unsafe pointer else {
      return nil
    }
    if zeroed { unsafe memset(pointer, 0, padded) }
    return unsafe pointer
  }
}
