import CIntFlashAttention
import IntFlashAttention

/// Structs that begin with their size, as the caller's header had it.
enum CStruct {
  /// The struct with zeros where the caller's has no members.
  ///
  /// - Parameters:
  ///   - pointer: of the caller.
  ///   - name: of the argument.
  ///   - zero: a struct of zeros.
  /// - Returns: a copy.
  /// - Throws: `AttentionError` with code `.invalidArgument` for NULL or a size that no version of
  ///   the struct has.
  static func read<Struct>(
    _ pointer: UnsafePointer<Struct>?,
    _ name: String,
    _ zero: Struct
  ) throws(AttentionError) -> Struct {
    let source = unsafe UnsafeRawPointer(try require(pointer, name))
    let size = unsafe try checkedSize(source, name, of: Struct.self)
    var result = zero
    unsafe withUnsafeMutableBytes(of: &result) {
      unsafe $0.baseAddress?.copyMemory(from: source, byteCount: size)
    }
    return result
  }

  /// Writes the members that the caller's struct has; its size stays.
  static func write<Struct>(
    _ value: Struct,
    to pointer: UnsafeMutablePointer<Struct>?,
    _ name: String
  ) throws(AttentionError) {
    let target = unsafe UnsafeMutableRawPointer(try require(pointer, name))
    let size = unsafe try checkedSize(UnsafeRawPointer(target), name, of: Struct.self)
    let sizeBytes = MemoryLayout<UInt32>.size
    unsafe withUnsafeBytes(of: value) {
      unsafe (target + sizeBytes).copyMemory(
        from: UnsafeRawBufferPointer(rebasing: $0[sizeBytes...]).baseAddress.unsafelyUnwrapped,
        byteCount: size - sizeBytes
      )
    }
  }

  private static func checkedSize<Struct>(
    _ pointer: UnsafeRawPointer,
    _ name: String,
    of type: Struct.Type
  ) throws(AttentionError) -> Int {
    let size = Int(unsafe pointer.loadUnaligned(as: UInt32.self))
    let largest = MemoryLayout<Struct>.size
    // Pointers fill multiples of 8, so none of them is cut.
    guard size >= 8, size <= largest, size.isMultiple(of: 8) else {
      throw AttentionError(
        .invalidArgument,
        "\(name): struct_size is \(size); it must be sizeof(\(type)), \(largest) in this version of "
          + "the library"
      )
    }
    return size
  }
}

/// The pointer, unless it is NULL.
func require<Pointee>(
  _ pointer: UnsafePointer<Pointee>?,
  _ name: String
) throws(AttentionError) -> UnsafePointer<Pointee> {
  guard let pointer = unsafe pointer else { throw nullError(name) }
  return unsafe pointer
}

/// The pointer, unless it is NULL.
func require<Pointee>(
  _ pointer: UnsafeMutablePointer<Pointee>?,
  _ name: String
) throws(AttentionError) -> UnsafeMutablePointer<Pointee> {
  guard let pointer = unsafe pointer else { throw nullError(name) }
  return unsafe pointer
}

func nullError(_ name: String) -> AttentionError {
  AttentionError(.invalidArgument, "\(name) is NULL")
}

/// Handles of objects that the caller destroys.
enum Handle {
  static func make(_ object: AnyObject) -> OpaquePointer {
    unsafe OpaquePointer(Unmanaged.passRetained(object).toOpaque())
  }

  static func object<Object: AnyObject>(
    _ handle: OpaquePointer?,
    _ name: String,
    as type: Object.Type
  ) throws(AttentionError) -> Object {
    guard let handle = unsafe handle else { throw nullError(name) }
    return unsafe Unmanaged<Object>.fromOpaque(UnsafeRawPointer(handle)).takeUnretainedValue()
  }

  static func destroy<Object: AnyObject>(_ handle: OpaquePointer?, as type: Object.Type) {
    guard let handle = unsafe handle else { return }
    unsafe Unmanaged<Object>.fromOpaque(UnsafeRawPointer(handle)).release()
  }
}
