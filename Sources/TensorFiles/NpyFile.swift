public import IntFlashAttention

/// NumPy's `.npy` files: one array each.
public enum NpyFile {
  /// Reads an array.
  ///
  /// Accepted are versions 1.0, 2.0 and 3.0 of the format, in C order, with descr `<f4`, `<f2`,
  /// `|i1`, `|b1` (int8 of 0 and 1) or `<f8`. The last is rounded to float32: to nearest, beyond its range to infinity.
  ///
  /// - Throws: `TensorFileError` with code `.cannotOpen`, `.truncated`, `.malformed` (also for bytes
  ///   after the array), `.unsupportedType`, `.unsupportedLayout` for Fortran order, or `.tooLarge`.
  public static func read(path: String) throws(TensorFileError) -> Tensor {
    let file = try FileBytes(path: path)
    let header = try NpyHeader(file.bytes, path: path)
    guard let bits = storedBitCount(header.shape, bitWidth: header.type.bitWidth) else {
      throw TensorFileError(
        .tooLarge,
        path: path,
        "shape \(header.shape): its size in bits is above \(Int.max)"
      )
    }
    let available = file.count - header.dataOffset
    guard available == bits / 8 else {
      let isShort = available < bits / 8
      throw TensorFileError(
        isShort ? .truncated : .malformed,
        path: path,
        "\(available) bytes follow the header, but shape \(header.shape) of "
          + "\(header.type.rawValue) takes \(bits / 8)"
      )
    }
    let range = header.dataOffset..<file.count
    guard let type = header.type.elementType else {
      return try file.tensorOfDoubles(shape: header.shape, in: range)
    }
    return try file.tensor(type, shape: header.shape, in: range)
  }

  /// Writes an array, version 1.0, in C order.
  ///
  /// The file appears whole or not at all: it is written beside `path` and renamed. A device or a
  /// pipe is written to directly. A symbolic link is replaced.
  ///
  /// - Throws: `TensorFileError` with code `.unsupportedType` unless the elements are float32,
  ///   float16 or int8, `.tooLarge` for a shape too long for the header, or `.cannotWrite`.
  public static func write(_ tensor: TensorView, to path: String) throws(TensorFileError) {
    guard let type = NpyHeader.DataType(tensor.elementType) else {
      throw TensorFileError(
        .unsupportedType,
        path: path,
        "NumPy has no type for \(tensor.elementType); float32, float16 and int8 can be written, "
          + "and .safetensors takes the others"
      )
    }
    let header = try NpyHeader.encode(type, shape: tensor.shape, path: path)
    try ReplacedFile.replace(path, with: [header, tensor.rowMajorBytes()])
  }
}
